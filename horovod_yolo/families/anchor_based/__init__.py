"""YOLOv5 and YOLOv3: boxes are predicted relative to anchors, which are fitted to the data."""
