"""Model directories: read, written, signed, registered and exported, each with its lineage.

May import `storage`, `text`.
"""
