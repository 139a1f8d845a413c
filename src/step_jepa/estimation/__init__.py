"""What memory a run will need, found before it starts."""
