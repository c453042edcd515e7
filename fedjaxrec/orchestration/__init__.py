"""A run from its config to its report: experiment loop and checkpoints."""
