"""What there is to learn in data, before training."""
