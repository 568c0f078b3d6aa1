"""Measures recipes that differ only in their stages, and writes the page that compares them.

May import `evaluation`, `model`, `recipe`, `run`, `stages`.
"""
