"""The representation trainer and what it needs."""
