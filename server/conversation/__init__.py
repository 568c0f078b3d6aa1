"""Conversations of the widget: their history, the replies being made, and who may go on with them; no HTTP."""
