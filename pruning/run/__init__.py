"""Carries a recipe from its base to a published artifact, and resumes where a killed run ended.

May import `data`, `evaluation`, `model`, `recipe`, `stages`.
"""
