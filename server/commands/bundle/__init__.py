"""`secateur bundle`: a server with its models, knowledge, skills and packages, for a machine without network."""
