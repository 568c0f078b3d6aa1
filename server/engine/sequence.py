"""One request to the engine: its prompt, its sampled ids, and its place in the KV cache.

No text, HTTP or tensors. Only the scheduler changes a sequence, except for `begun`, which the engine sets."""

import secrets
from collections.abc import Mapping
from typing import Annotated, Any, Literal, NamedTuple, Self

from msgspec import Meta, Struct
from msgspec.structs import asdict, replace

from server.engine.blocks import BLOCK, block_hash, root_hash, salted_hash
from server.engine.sampling.constraint import Constraint, ConstraintState
from server.errors import InvalidRequest

Finish = Literal["stop", "length"]
NO_ID = -1
"""Instead of an id for a piece of text whose ids are unknown."""
Temperature = Annotated[float, Meta(ge=0, le=2)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]


class SamplingOptions(Struct, frozen=True, kw_only=True):
    """Sampling options that a skill or a request may set; None leaves an option to the next layer below.

    A new option is a field here, its neutral value in `Sampling`, and its effect in the samplers.
    """

    temperature: Temperature | None = None
    """Divides the logits: 0 is greedy, 1 the model's own distribution, more is more random."""
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    """Nucleus: only the fewest most likely tokens whose probabilities reach this sum; 1, the default, keeps all."""
    top_k: Annotated[int, Meta(ge=0)] | None = None
    """Only the k most likely tokens; 0, the default, keeps all."""
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    """Only tokens at least this fraction as likely as the most likely one; 0, the default, keeps all."""
    frequency_penalty: Penalty | None = None
    """Subtracted from a token's logit for each time that the reply contains it; by default 0."""
    presence_penalty: Penalty | None = None
    """Subtracted once from the logit of each token that the reply contains; by default 0."""
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    """Divides the positive logits of tokens in the prompt or the reply, and multiplies negative ones (CTRL, 2019).

    More than 1 avoids repetition, less favours it; by default 1. Applied before biases and the other penalties.
    """
    min_tokens: Annotated[int, Meta(ge=0)] | None = None
    """Tokens before which no stop token is sampled and no stop string is looked for; by default 0."""

    def merged_over(self, below: "SamplingOptions") -> Self:
        """These options, the unset ones of this class taken from `below`."""
        unset = [name for name in SamplingOptions.__struct_fields__ if getattr(self, name) is None]
        return replace(self, **{name: getattr(below, name) for name in unset})


class RequestedSampling(SamplingOptions, frozen=True, kw_only=True):
    """Sampling options of one request."""

    logit_bias: tuple[tuple[int, float], ...] | None = None
    """Pairs of a token id and a number to add to its logit."""
    seed: int | None = None
    """Makes sampling repeatable; None draws a random seed."""
    logprobs: int | None = None
    """How many of the most likely tokens to report with each token's logprob; None reports no logprobs."""
    prompt_logprobs: int | None = None
    """Like `logprobs`, for the tokens of the prompt, which is then computed without the prefix cache."""
    ignore_eos: bool = False
    """Sample on after the model's own stop tokens."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the reply, besides the model's own."""
    max_tokens: int | None = None


class Sampling(RequestedSampling, frozen=True, kw_only=True):
    """How the engine samples one reply: every option resolved, by default the model's own distribution."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    logit_bias: tuple[tuple[int, float], ...] = ()
    max_tokens: int = 256
    stop_ids: frozenset[int] = frozenset()
    """A reply ends at the first of these, or after `max_tokens`."""
    constraint: Constraint | None = None
    """What the reply must match; it then also ends where nothing may follow."""

    @classmethod
    def resolve(cls, requested: RequestedSampling, model_stop_ids: frozenset[int]) -> Self:
        """The options of a reply; unset ones keep the defaults above, and `min_tokens` is at most `max_tokens`."""
        set_options = {name: value for name, value in asdict(requested).items() if value is not None}
        own = frozenset[int]() if requested.ignore_eos else model_stop_ids
        resolved = cls(**set_options, stop_ids=own.union(requested.stop_token_ids))
        return replace(resolved, min_tokens=min(resolved.min_tokens, resolved.max_tokens))


def check(prompt: int, sampling: Sampling, context: int) -> None:
    """Raise InvalidRequest unless a prompt of `prompt` tokens and its reply fit the context."""
    if prompt < 1:
        raise InvalidRequest("The prompt is empty.", param="messages")
    if sampling.max_tokens < 0:
        raise InvalidRequest(f"max_tokens is {sampling.max_tokens}; it must be at least 0.", param="max_tokens")
    if prompt + sampling.max_tokens > context:
        raise InvalidRequest(
            f"This model's maximum context length is {context} tokens. However, the prompt has {prompt} tokens and "
            f"max_tokens is {sampling.max_tokens}, together {prompt + sampling.max_tokens}.",
            param="max_tokens" if prompt < context else "messages",
            code="context_length_exceeded",
            reason="context",
        )


class Logprobs(NamedTuple):
    """Natural log probabilities at one position, before temperature, penalties and biases."""

    sampled: float
    """Of the sampled id."""
    top: tuple[tuple[int, float], ...]
    """The most likely ids with theirs, in descending order, the lower id first in a tie."""


class PromptLogprob(NamedTuple):
    """A prompt id's log probabilities, given the ids before it."""

    logprobs: Logprobs
    rank: int
    """1 if no id was more likely than the prompt's own."""


class Reported(NamedTuple):
    """The tokens of a reply as a backend counted them; `prompt` includes `cached`."""

    prompt: int
    cached: int
    output: int


class Sequence:
    """The ids of one request, prompt first; the keys and values of the first `computed` lie in `blocks`.

    The first `shared_prefix` ids begin every prompt of the skill: all its sequences share their full blocks. Later
    blocks are shared only with sequences of the same `cache_salt`. A sequence with a `leader` of the same prompt waits
    until that has computed it.
    """

    def __init__(
        self,
        skill: str,
        prompt: tuple[int, ...],
        sampling: Sampling,
        *,
        shared_prefix: int = 0,
        cache_salt: str = "",
        leader: "Sequence | None" = None,
    ) -> None:
        self.skill = skill
        self.prompt = prompt
        self.sampling = sampling
        self.seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self.tokens = list(prompt)
        self.computed = 0
        self.cached = 0
        """Prompt ids whose keys and values another sequence computed."""
        self.cache_salt = cache_salt
        self.leader = leader
        self.messages: tuple[Mapping[str, Any], ...] = ()
        """What `prompt` says, for backends that render it themselves."""
        self.reported: Reported | None = None
        """The usage, from a backend that sends no ids."""
        self.prompt_logprobs: list[PromptLogprob] = []
        """Of all prompt ids but the first, as far as computed; empty unless the sampling wants them."""
        self.shared_blocks = shared_prefix // BLOCK
        """Number of first blocks that lie wholly within the shared prefix."""
        self.begun: float | None = None
        """When its first pass was planned, on the monotonic clock."""
        self.slot: int | None = None
        self.blocks: list[int] = []
        self.hashes: list[bytes] = []
        """Prefix hash of each full block, as far as computed."""
        self.registered = 0
        """Number of first blocks that other sequences can find."""
        self.constraint: ConstraintState | None = None
        """The state of the reply in its `sampling.constraint`; None until the sequence is admitted."""
        self.finish: Finish | None = None

    @property
    def generated(self) -> int:
        """The number of sampled ids."""
        return len(self.tokens) - len(self.prompt)

    @property
    def follows_unfinished_prompt(self) -> bool:
        """Whether its leader is still computing the prompt that they share."""
        return self.leader is not None and self.leader.slot is not None and not self.leader.generated

    @property
    def scores_prompt(self) -> bool:
        """Whether the logits of every prompt id are wanted, so that no id may come from the prefix cache."""
        return self.sampling.prompt_logprobs is not None

    @property
    def remaining(self) -> int:
        """The number of ids without keys and values: 1 while decoding."""
        return len(self.tokens) - self.computed

    def extend_hashes(self, count: int) -> None:
        """Hash the first `count` blocks, which must be full."""
        while len(self.hashes) < count:
            start = len(self.hashes) * BLOCK
            before = self.hashes[-1] if self.hashes else root_hash(self.skill)
            if len(self.hashes) == self.shared_blocks:
                before = salted_hash(before, self.cache_salt)
            self.hashes.append(block_hash(before, self.tokens[start : start + BLOCK]))

    def extended(self, ids: tuple[int, ...]) -> "Sequence":
        """A copy with `ids` appended, for sampling the id after a guess; it has no blocks in the cache."""
        copy = Sequence(self.skill, self.prompt, self.sampling)
        copy.seed = self.seed
        copy.tokens = [*self.tokens, *ids]
        return copy

    @property
    def complete(self) -> bool:
        """Whether the reply has ended because its grammar allows nothing more, so that its last id is text."""
        return self.finish == "stop" and self.tokens[-1] not in self.sampling.stop_ids

    @property
    def forced(self) -> int | None:
        """The id to append without sampling; None where there is a choice, or where each id needs logprobs."""
        if self.constraint is None or self.finish or self.sampling.logprobs is not None:
            return None
        return self.constraint.forced

    def append(self, token: int) -> None:
        """Add an id; sets `finish` if it ends the reply."""
        self.tokens.append(token)
        if self.constraint:
            self.constraint.accept(token)
        if token in self.sampling.stop_ids or (self.constraint and self.constraint.complete):
            self.finish = "stop"
        elif self.generated >= self.sampling.max_tokens:
            self.finish = "length"
