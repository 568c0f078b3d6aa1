"""Serves a checkpoint to OpenAI-style clients and to the widget, and meters every token by skill."""
