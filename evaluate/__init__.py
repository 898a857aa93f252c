"""Scores of detections and scenes against ground truth; knows only talstack.io."""
