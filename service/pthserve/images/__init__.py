"""Bytes to pixels: allowed formats, bounds, and preprocessing as in training."""
