"""Stages that prune or quantise one weight at a time: layerwise, AWQ and round-to-nearest."""
