"""POST /v1/chat/completions: its schema, its endpoint and its format."""
