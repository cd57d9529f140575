"""YOLOv8, YOLO11, YOLO26 and older bodies with YOLOv8's head: cells predict distances, without anchors."""
