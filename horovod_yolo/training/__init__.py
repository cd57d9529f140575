"""The loop and the step."""
