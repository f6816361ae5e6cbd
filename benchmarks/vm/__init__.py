"""Measures the vsock device side by side with others: ``python -m benchmarks.vm``."""
