"""The widget's conversations without HTTP: history, running replies, session tokens and ratings."""
