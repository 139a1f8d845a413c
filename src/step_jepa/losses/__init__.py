"""Losses: pairs of views -> one loss per pair."""

from step_jepa.losses.registry import LOSSES, LossSpec, register_loss

__all__ = ["LOSSES", "LossSpec", "register_loss"]
