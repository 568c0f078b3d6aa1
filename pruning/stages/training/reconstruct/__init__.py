"""Trains each block towards the dense base's outputs."""
