"""What scores of conditions over seeds and problems say: differences, and what is left to chance."""
