"""Sheared-LLaMA: trains weights and hard-concrete masks together, then cuts what the masks remove."""
