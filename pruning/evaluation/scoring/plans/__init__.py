"""What each kind of task asks a model to compute, planned before a model is loaded."""
