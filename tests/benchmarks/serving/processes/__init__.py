"""Scripts of the measured processes other than the server."""
