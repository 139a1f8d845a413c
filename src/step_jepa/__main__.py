"""`python -m step_jepa`, for launchers: `torchrun --nproc_per_node 2 -m step_jepa train ...`."""

from step_jepa.cli import main

if __name__ == "__main__":  # a process that is started for a cell of an experiment reads this file too
    main()
