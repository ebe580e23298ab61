"""Execute trials; know nothing of how candidates are chosen."""
