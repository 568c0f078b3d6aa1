"""The widget's conversations: history, replies in progress, session tokens and ratings; no HTTP."""
