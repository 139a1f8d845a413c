"""Checks of the package's own code on a user's model, tokenizer and rows."""
