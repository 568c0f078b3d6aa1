"""Generates docs/reference/ and the tree of docs/explain/architecture.md from the code; `make reference` runs it."""
