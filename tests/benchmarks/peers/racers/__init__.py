"""One script for each engine in the race; each runs in that engine's own environment."""
