"""The stage `vocabulary`: chooses the tokens to keep, cuts the others, and fits the model to what is left."""
