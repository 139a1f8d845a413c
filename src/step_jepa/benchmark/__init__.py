"""Time and memory of the same rows: every objective against plain fine-tuning, ours or TRL's."""
