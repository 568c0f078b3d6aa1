"""Endpoints; each only translates a wire format."""
