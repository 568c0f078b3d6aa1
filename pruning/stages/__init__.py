"""The stages of a recipe: each takes a model and returns another with a record of the step.

May import `data`, `model`, `passes`, `recipe`, `techniques`.
"""
