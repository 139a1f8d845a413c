"""What is_branch on an example: branches, the places of views, controls."""
