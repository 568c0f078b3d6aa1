"""The training that follows the removal of tokens: its options, defaults and bounds."""

from typing import Annotated, Literal

from msgspec import Meta

from pruning.recipe.bounds import Count
from pruning.recipe.training import TextTraining


class Fit(TextTraining, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Distil the base, with all its tokens, into the model with fewer: it learns what a removed token falls into."""

    weights: Literal["all", "embeddings"] = "all"
    """What is trained: everything, or the embeddings and the head only."""
    candidates: Count = 3
    """Of this many times the budget's sequences, those with the most removed tokens are trained on."""
    length: Annotated[int, Meta(ge=2)] = 128
    """Tokens in each sequence, as the base counts them."""
    batch: Count = 8
    """Sequences in each step."""
    learning_rate: Annotated[float, Meta(gt=0)] = 3e-4
    """Peak learning rate."""
