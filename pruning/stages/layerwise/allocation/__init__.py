"""Sparsity per block: by outliers (OWL), or by evolutionary search."""
