"""The process that a command runs in, and those beside it."""
