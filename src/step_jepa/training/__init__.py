"""What trains: the trainer and what it needs. The command is in train/."""
