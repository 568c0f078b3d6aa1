"""Scores a saved artifact on a task beside its dense and quantised bases, judges gates, and reports.

May import `data`, `model`, `passes`, `recipe`, `stages`, `techniques`.
"""
