"""Readers make documents of bytes, one format each; `process.py` runs them in a child process with limits."""
