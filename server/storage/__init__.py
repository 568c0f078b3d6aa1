"""Settings in TOML, and what survives power loss: atomic files, locks, and one adapter for SQLite and PostgreSQL.

May import no other room.
"""
