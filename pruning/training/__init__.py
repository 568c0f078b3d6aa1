"""Recovery of what pruning cost, by training on the user's own data."""
