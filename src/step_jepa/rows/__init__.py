"""What hangs on an example: branches, the places of views, controls."""
