"""One image from bytes to answer: admission, batches, reload."""
