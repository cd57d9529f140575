"""This process: signals, requests to stop, logs, output."""
