"""Training: options, state, the loop, checkpoints, and what a run reports."""
