"""Make a narrow net from a wide one; know nothing of trials."""
