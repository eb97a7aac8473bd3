"""Peers: the same model served as people serve it."""
