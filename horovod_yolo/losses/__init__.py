"""What the networks learn from: which predictions answer for which boxes, and how wrong they are."""
