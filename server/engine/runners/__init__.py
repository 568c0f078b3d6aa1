"""Ways to run a model: each turns a batch into logits."""
