"""Horovod for this environment: the script that builds it, the edits that it makes, the pins of its tools."""
