"""Distils the dense base into the pruned model, with quantisation-aware training or LoRA on request."""
