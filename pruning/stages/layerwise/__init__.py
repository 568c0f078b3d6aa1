"""Stages that prune or round one layer at a time: layerwise, AWQ and round-to-nearest."""
