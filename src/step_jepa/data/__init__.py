"""Text to token ids: problems, steps, conversations, examples."""
