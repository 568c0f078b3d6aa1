"""What is kept of visitors' words and finished replies: one database, in memory unless the operator says otherwise."""
