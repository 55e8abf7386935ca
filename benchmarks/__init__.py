"""Benchmarks of the cross-entropy and its gradient."""
