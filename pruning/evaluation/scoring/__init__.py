"""Scores of one model on one task, computed by the runner that will serve it."""
