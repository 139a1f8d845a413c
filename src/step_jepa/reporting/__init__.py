"""Runs and results on one page."""
