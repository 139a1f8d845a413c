"""Text to token ids: problems, steps, conversations, examples."""

from step_jepa.data import formats as formats  # registers them, so that they are known wherever records are read
