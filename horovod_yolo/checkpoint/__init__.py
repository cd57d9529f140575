"""What a run must remember, and how it reaches the disk whole."""
