"""Detections in pictures, videos and streams that belong to no data set."""
