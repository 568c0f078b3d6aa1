"""Functions that a model may call: offered in the prompt, constrained by a grammar, and read from the reply."""
