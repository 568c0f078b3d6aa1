"""One request as the engine sees it: token ids in, token ids out, and how far the cache has come.

It knows nothing about text, HTTP or tensors; only the scheduler changes it, but for `begun`, which is the engine's."""

import secrets
from typing import Annotated, Literal, NamedTuple, Self

from msgspec import Meta, Struct
from msgspec.structs import asdict, replace

from server.engine.blocks import BLOCK, first_key, next_key
from server.errors import InvalidRequest

Finish = Literal["stop", "length"]
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class SamplingOptions(Struct, frozen=True, kw_only=True):
    """Sampling options that a skill or a request may set; None leaves an option to the next layer below.

    A new option is a field here, its neutral value in `Sampling`, and its effect in the samplers.
    """

    temperature: Temperature | None = None
    """Divides the logits: 0 is greedy, 1 the model's own distribution, more is more random."""
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Nucleus sampling: only the fewest most likely tokens whose probabilities reach this sum; 1 keeps all."""
    top_k: Annotated[int, Meta(ge=0)] | None = None
    """Only the k most likely tokens; 0 keeps all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Only tokens at least this fraction as likely as the most likely one; 0 keeps all."""
    frequency_penalty: Penalty | None = None
    """Subtracted from a token's logit for each time that the reply contains it; 0 is none."""
    presence_penalty: Penalty | None = None
    """Subtracted once from the logit of each token that the reply contains; 0 is none."""

    def merged_over(self, below: "SamplingOptions") -> Self:
        """These options, the unset ones of this class taken from `below`."""
        unset = [name for name in SamplingOptions.__struct_fields__ if getattr(self, name) is None]
        return replace(self, **{name: getattr(below, name) for name in unset})


class RequestedSampling(SamplingOptions, frozen=True, kw_only=True):
    """Sampling options of one request."""

    logit_bias: tuple[tuple[int, float], ...] | None = None
    """Token ids, and what is added to their logits."""
    seed: int | None = None
    """Makes sampling repeatable; None draws a random seed."""
    logprobs: int | None = None
    """How many of the most likely tokens come with each token's `Score`; None returns no scores."""
    max_tokens: int | None = None


class Sampling(RequestedSampling, frozen=True, kw_only=True):
    """How the engine samples one reply: every option resolved, by default the model's own distribution."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    max_tokens: int = 256
    stop_ids: frozenset[int] = frozenset()
    """A reply ends at the first of these, or after `max_tokens`."""

    @classmethod
    def resolve(cls, requested: RequestedSampling, stop_ids: frozenset[int]) -> Self:
        """The options of a reply; those still unset keep the defaults above."""
        set_options = {name: value for name, value in asdict(requested).items() if value is not None}
        return cls(**set_options, stop_ids=stop_ids)


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
