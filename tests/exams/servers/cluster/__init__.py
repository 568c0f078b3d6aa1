"""The exam of a remote engine: `secateur serve` in front of a real vLLM."""
