"""One request as the engine sees it: token ids in, token ids out, and how far the cache has come.

It knows nothing about text, HTTP or tensors; only the scheduler changes it, but for `begun`, which is the engine's."""

import secrets
from typing import Literal, NamedTuple

from msgspec import Struct

from server.engine.blocks import BLOCK, first_key, next_key
from server.errors import InvalidRequest

Finish = Literal["stop", "length"]


class Sampling(Struct, frozen=True):
    """How the next token is drawn, and when to stop: after `max_tokens`, or at any of `stop_ids`."""

    temperature: float = 1.0
    top_p: float = 1.0
    """Only the fewest most likely tokens whose mass reaches it."""
    top_k: int = 0
    """Only so many of the most likely tokens; 0: all."""
    min_p: float = 0.0
    """Only tokens at least so likely as this part of the most likely one."""
    frequency_penalty: float = 0.0
    """Taken from a token's logit for each time that it stands in the reply."""
    presence_penalty: float = 0.0
    """Taken once from the logit of each token that stands in the reply."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """Ids, and what is added to their logits."""
    seed: int | None = None
    logprobs: int | None = None
    """Whether each token comes with its `Score`, and with how many of the most likely others."""
    max_tokens: int = 256
    stop_ids: frozenset[int] = frozenset()


def check(prompt: int, sampling: Sampling, context: int) -> None:
    """Raise InvalidRequest unless a prompt of so many tokens and its reply fit the context."""
    if prompt < 1:
        raise InvalidRequest("The prompt is empty.", param="messages")
    if sampling.max_tokens < 1:
        raise InvalidRequest(f"max_tokens is {sampling.max_tokens}; it must be at least 1.", param="max_tokens")
    if prompt + sampling.max_tokens > context:
        raise InvalidRequest(
            f"The prompt has {prompt} tokens and max_tokens is {sampling.max_tokens}, together "
            f"{prompt + sampling.max_tokens}; this server's context is {context} tokens.",
            param="max_tokens" if prompt < context else "messages",
            code="context_length_exceeded",
            reason="context",
        )


class Score(NamedTuple):
    """Natural logarithms of the probabilities that the model gives, before temperature, penalties and biases."""

    logprob: float
    """Of the sampled id."""
    best: tuple[tuple[int, float], ...]
    """The most likely ids with theirs, in falling order, the lower id first in a tie."""


class Sequence:
    """The ids of one request, prompt first, of which `computed` have their keys and values in `blocks`.

    The first `standing` ids are those that every prompt of the skill begins with.
    """

    def __init__(self, skill: str, prompt: tuple[int, ...], sampling: Sampling, standing: int = 0) -> None:
        self.skill = skill
        self.prompt = prompt
        self.sampling = sampling
        self.seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self.tokens = list(prompt)
        self.computed = 0
        self.cached = 0
        self.standing = standing
        self.begun: float | None = None
        """When its first pass was planned, on the monotonic clock."""
        self.slot: int | None = None
        self.blocks: list[int] = []
        self.keys: list[bytes] = []
        """What stands for each of the first blocks, for those that begin alike."""
        self.learnt = 0
        """How many blocks others can find."""
        self.finish: Finish | None = None

    @property
    def generated(self) -> int:
        """How many tokens were sampled so far."""
        return len(self.tokens) - len(self.prompt)

    @property
    def remaining(self) -> int:
        """How many ids still wait for their keys and values: 1 while decoding."""
        return len(self.tokens) - self.computed

    def extend_keys(self, count: int) -> None:
        """Make the keys of the first `count` blocks, which are full."""
        while len(self.keys) < count:
            start = len(self.keys) * BLOCK
            before = self.keys[-1] if self.keys else first_key(self.skill)
            self.keys.append(next_key(before, self.tokens[start : start + BLOCK]))

    def ahead(self, ids: tuple[int, ...]) -> "Sequence":
        """The sequence as it will be if `ids` come next, for sampling: it has no place in the cache."""
        copy = Sequence(self.skill, self.prompt, self.sampling)
        copy.seed = self.seed
        copy.tokens = [*self.tokens, *ids]
        return copy

    def append(self, token: int) -> None:
        """Add a sampled id, and set `finish` if it is the last one."""
        self.tokens.append(token)
        if token in self.sampling.stop_ids:
            self.finish = "stop"
        elif self.generated >= self.sampling.max_tokens:
            self.finish = "length"
