"""Serves a checkpoint: skills over HTTP, every token metered."""
