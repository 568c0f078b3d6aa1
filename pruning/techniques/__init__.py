"""Layer-wise techniques: one file each, one name each in the union."""
