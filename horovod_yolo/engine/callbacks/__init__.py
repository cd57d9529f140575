"""Watchers of a run. They exist on rank 0 only."""
