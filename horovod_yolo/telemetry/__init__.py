"""What watches a run: tables, progress, TensorBoard, checkpoints, report."""
