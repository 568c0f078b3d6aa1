"""Results as tables, one HTML page, and charts."""
