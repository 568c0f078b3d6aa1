"""Stages that change shapes: depth, width and vocabulary; the result loads in stock runtimes."""
