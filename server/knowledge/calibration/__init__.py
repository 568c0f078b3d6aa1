"""Calibrates the thresholds of a knowledge on its own questions and on questions of other subjects."""
