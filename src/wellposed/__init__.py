"""Regularisation methods for PyTorch that work in any training loop and work together."""
