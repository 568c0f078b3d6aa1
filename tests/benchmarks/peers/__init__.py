"""The race that `make bench-peers` runs: other inference engines, each from its wheel, beside this one."""
