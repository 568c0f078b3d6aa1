"""What each kind of task asks a model to compute, planned before any model is loaded."""
