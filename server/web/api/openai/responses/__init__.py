"""POST /v1/responses: its schema, translated into a chat completion's, and its format."""
