"""How many pods a model needs."""
