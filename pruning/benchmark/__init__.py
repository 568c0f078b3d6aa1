"""Runs rows of recipes that differ in their stages alone, and writes the page that compares them.

May import `model`, `recipe`, `run`, `stages`.
"""
