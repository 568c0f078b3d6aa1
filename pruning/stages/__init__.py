"""The stages of a recipe: each takes a model and returns another with the lineage's record of the step.

May import `data`, `model`, `passes`, `recipe`, `techniques`.
"""
