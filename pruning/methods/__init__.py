"""Pruning methods, one a file."""
