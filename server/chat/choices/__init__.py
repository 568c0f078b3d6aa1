"""The choices of a reply: one for each prompt and `n`."""
