"""Numba CPU kernels on plain arrays, each beside its NumPy reference."""
