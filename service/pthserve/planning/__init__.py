"""Which engine and precision on this machine, and whether it agrees with the reference."""
