"""Simulates privacy-preserving federated recommender systems on JAX."""

__version__ = '0.1.0'
