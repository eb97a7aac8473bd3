"""Benchmarks: this service beside its peers and beside what the machine can do, as ratios from one run."""
