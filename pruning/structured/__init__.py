"""Pruning that changes shapes: the result loads in stock runtimes."""
