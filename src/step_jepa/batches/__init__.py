"""Planned rows as tensors: padding, who sees whom, views read from hidden states."""
