"""Recipes: what to prune, how and on which data, as frozen values read from TOML.

May import `techniques`.
"""
