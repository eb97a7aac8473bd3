"""pthserve: drop in a `.pth`, get a service."""

__version__ = "0.1.0"
