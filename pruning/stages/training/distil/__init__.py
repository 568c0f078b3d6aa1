"""Distils the dense base into the pruned model, quantisation-aware where weights are rounded."""
