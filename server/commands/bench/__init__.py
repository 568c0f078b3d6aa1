"""`secateur bench`: the command, and the HTTP client that measures a server process."""
