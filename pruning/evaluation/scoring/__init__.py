"""Scores one model on one task, through the runner that will serve it."""
