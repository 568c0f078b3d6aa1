"""Plans forward passes: who is admitted, how much of a prompt is prefilled, and which tokens are guessed."""
