"""Settings of a run: schema and loading."""
