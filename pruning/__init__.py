"""Makes a checkpoint: a recipe in, a pruned and recorded artifact out."""
