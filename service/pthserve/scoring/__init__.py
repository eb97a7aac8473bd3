"""Batch scoring: the answers of a model for many images, as a data set of Parquet files."""
