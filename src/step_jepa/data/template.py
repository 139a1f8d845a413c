"""The chat template that a run is trained with."""

# A chat template without any framing, for base models: the contents of the turns, one to a line, and eos at the end.
PLAIN_TEMPLATE = (
    "{{ messages | map(attribute='content') | join('\\n') }}{{ '\\n' if add_generation_prompt else eos_token }}"
)
