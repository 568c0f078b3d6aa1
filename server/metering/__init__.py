"""Counts every token once, durably, by skill."""
