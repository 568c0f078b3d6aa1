"""Samples token ids from logits: a reference in torch, and a native sampler that draws the same ids."""
