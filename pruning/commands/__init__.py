"""`secateur prune`, `recipe`, `import`, `evaluate` and `task`: parse arguments, run a room, print a table.

May import everything.
"""
