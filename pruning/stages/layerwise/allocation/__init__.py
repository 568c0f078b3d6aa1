"""Sparsity per block: by the share of outliers (OWL), or by evolutionary search (EvoPress)."""
