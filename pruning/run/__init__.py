"""Carries out a recipe, from its base to a published artifact, and resumes interrupted runs.

May import `data`, `evaluation`, `model`, `recipe`, `stages`.
"""
