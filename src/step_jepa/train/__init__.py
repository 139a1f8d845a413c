"""The command `train`: files -> a trained model."""
