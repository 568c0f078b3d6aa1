"""Skills with versions: immutable revisions in a database, which of them is published, and who changed it why."""
