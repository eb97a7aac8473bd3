"""What both transports share: keys, rate limits, the request log."""
