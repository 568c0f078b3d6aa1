"""Sheared-LLaMA: weights and hard-concrete masks trained together, then cut."""
