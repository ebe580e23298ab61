"""Pruning criteria, one a file."""
