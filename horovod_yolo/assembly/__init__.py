"""The one place that wires parts."""
