"""Builds a knowledge: reads what changed, journals it, encodes what is new, and publishes the artifact whole."""
