"""The trust boundary: weights, checkpoints, pickles and cards. Nothing of a file ever runs here."""
