"""POST /v1/completions: its schema and its format."""
