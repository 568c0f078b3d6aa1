"""The checkpoint format: layouts, packing, lineage, reader and writer."""
