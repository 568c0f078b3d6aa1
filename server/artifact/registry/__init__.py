"""Versions of models: what was measured, who approved, and which one is in production."""
