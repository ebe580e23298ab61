"""What may vary in a network, and what it costs."""
