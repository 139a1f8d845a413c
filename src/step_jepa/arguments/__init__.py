"""From dataclasses to options that are typed or written in YAML, and their help."""
