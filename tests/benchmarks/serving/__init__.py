"""`make bench-serving`: the server against its own engine, against llama-server, and under many users."""
