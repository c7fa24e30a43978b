"""Sparse Llama models in JAX: prune, train back, export, measured end to end."""

__version__ = "0.1.0"
