"""Stages that change shapes (depth, width); stock runtimes load the result."""
