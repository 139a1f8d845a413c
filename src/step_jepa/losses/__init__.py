"""Losses: pairs of views -> one loss per pair."""
