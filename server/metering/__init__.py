"""Counts every token exactly once, durably, by skill, and reports the counts.

May import `storage`.
"""
