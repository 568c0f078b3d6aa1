"""`secateur skills`: validates skills, and saves, compares, publishes and rolls back their revisions."""
