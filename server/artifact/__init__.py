"""Artifacts: models read, written and exported; models and knowledge signed and registered, each with its lineage.

May import `storage`, `text`.
"""
