"""What a trained model can do and what its views know."""
