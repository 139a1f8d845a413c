"""`python -m step_jepa`, for launchers: `torchrun --nproc_per_node 2 -m step_jepa train ...`."""

from step_jepa.cli import main

main()
