"""Makes a checkpoint: a recipe in, a pruned, evaluated and recorded artifact out."""
