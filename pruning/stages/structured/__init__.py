"""Stages that change shapes (depth, width, vocabulary); stock runtimes load the result."""
