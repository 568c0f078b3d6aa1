"""Measures a saved artifact, read by the reader that will serve it."""
