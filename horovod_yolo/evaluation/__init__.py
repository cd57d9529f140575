"""Scores and detections of a trained model."""
