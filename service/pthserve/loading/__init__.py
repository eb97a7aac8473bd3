"""Anything that a user may name to a model; packs."""
