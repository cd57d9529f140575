"""COCO's average precision, exactly, and the precision and recall that trainers print."""
