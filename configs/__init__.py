"""Describe a run: RunConfig, and how it is read from YAML and flags."""
