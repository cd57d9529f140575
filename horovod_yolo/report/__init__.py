"""Pictures and a page of a training run, for people."""
