"""The fields that chat completions and completions share: OpenAI's, and engine options by vLLM's names."""

import re
from collections.abc import Mapping
from typing import Annotated

from msgspec import Meta, field

from server.engine.sequence import RequestedSampling
from server.errors import InvalidRequest
from server.web.api.openai.structured import StructuredFields

MOST_N = 16
"""The most choices of one prompt."""
MOST_LOGPROBS = 20
"""The most alternatives of a token that are reported."""
MOST_BIASES = 1024

TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
Alternatives = Annotated[int, Meta(ge=0, le=MOST_LOGPROBS)]


class EngineFields(StructuredFields, frozen=True, kw_only=True):
    """Sampling, and what the engine reports beside the text; each endpoint adds its own `logprobs` and lengths."""

    n: Annotated[int, Meta(ge=1, le=MOST_N)] = 1
    """Choices of each prompt, with the seeds `seed`, `seed + 1` and so on."""
    seed: int | None = None
    logit_bias: Annotated[dict[str, float], Meta(max_length=MOST_BIASES)] = field(default_factory=dict)
    """Bias by token id."""
    ignore_eos: bool = False
    """Whether to sample on after the model's own stop tokens."""
    stop_token_ids: Annotated[list[TokenId], Meta(max_length=256)] = field(default_factory=list)
    """Tokens that end a choice besides the model's own; they have no text."""
    prompt_logprobs: Alternatives | None = None
    """Alternatives to report, with its log probability, for each token of the prompt; None reports none."""
    return_token_ids: bool = False
    """Whether to report the ids of the prompt and of each choice."""
    user: str | None = None
    """Like `prompt_cache_key`, it divides the key's prefix cache, and is neither stored nor logged."""
    prompt_cache_key: str | None = None

    @property
    def cache_labels(self) -> tuple[str, str]:
        """Requests of an API key share cached prompts only if these are equal."""
        return self.user or "", self.prompt_cache_key or ""

    def requested(
        self, *, max_tokens: int | None, logprobs: int | None, prompt_logprobs: int | None
    ) -> RequestedSampling:
        """The options in the engine's form, with the lengths and logprobs that the endpoint read."""
        requested = RequestedSampling(
            logit_bias=tuple((int(id), bias) for id, bias in self.logit_bias.items()) or None,
            seed=self.seed,
            logprobs=logprobs,
            prompt_logprobs=prompt_logprobs,
            ignore_eos=self.ignore_eos,
            stop_token_ids=tuple(self.stop_token_ids),
            max_tokens=max_tokens,
        )
        return requested.merged_over(self)


def check_biases(biases: Mapping[str, float]) -> None:
    """Check that biases are within -100 and 100, for token ids; the message names the key."""
    for key, bias in biases.items():
        shown = key[:32]
        if not re.fullmatch("[0-9]{1,10}", key) or int(key) >= 1 << 31:
            raise InvalidRequest(f"`logit_bias` has the key {shown!r}, which is no token id.", param="logit_bias")
        if not -100 <= bias <= 100:
            raise InvalidRequest(
                f"`logit_bias` of token {shown} must be from -100 to 100.", param=f"logit_bias.{shown}"
            )
