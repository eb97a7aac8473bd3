"""Where models come from: addresses, downloads, and the signatures that they may need."""
