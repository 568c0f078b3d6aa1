"""The index of a knowledge: passages in SQLite with FTS5, vectors in NumPy's format, and their joint ranking."""
