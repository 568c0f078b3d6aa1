"""Sparsity per block, by outliers (OWL) or evolutionary search (EvoPress), or per matrix, by Fisher information."""
