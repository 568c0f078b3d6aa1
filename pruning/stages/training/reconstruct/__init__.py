"""The stage `reconstruct`: trains each block alone towards the dense base's states."""
