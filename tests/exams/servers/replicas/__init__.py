"""The exam of replicas: three servers and one PostgreSQL behind a router, all killed in turn."""
