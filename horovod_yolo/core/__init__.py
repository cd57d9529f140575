"""Types, boxes and errors: pure, imports nothing of ours."""
