"""The private APIs of libraries that pthserve needs. pyproject.toml bounds the versions of the libraries."""
