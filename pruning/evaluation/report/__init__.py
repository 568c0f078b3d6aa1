"""Renders results as terminal tables, one HTML page, and charts."""
