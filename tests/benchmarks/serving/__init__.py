"""What `make bench-serving` measures: the server beside its own engine, beside llama-server, and in a crowd."""
