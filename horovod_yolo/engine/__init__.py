"""Training: assembly, loop, step, evaluation."""
