"""`secateur keys`: makes, lists, limits, rotates and revokes API keys; makes signing keys."""
