"""Exports to the formats of other software; a value is kept exactly or refused."""
