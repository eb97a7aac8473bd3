"""A user's own preprocessing and results beside those of pthserve."""
