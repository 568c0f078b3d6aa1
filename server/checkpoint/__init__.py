"""The checkpoint format: layouts, lineage, reader and writer."""
