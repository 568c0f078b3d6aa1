"""Logits to token ids: the definition in torch, and the native sampler that draws the same ids."""
