"""What is planned of an example: branches, the places of views, controls."""
