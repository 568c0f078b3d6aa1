"""The prompt of a choice, for callers who may see it: its ids, its text and its log probabilities."""

from collections.abc import Sequence

from msgspec import Struct

from server.chat.choices.logprobs import LEAST
from server.engine.sequence import PromptLogprob
from server.engine.stream import Stream
from server.text.tokenizer import Tokenizer


class RankedToken(Struct, frozen=True):
    """A token at a position of the prompt, given all before it."""

    id: int
    token: str
    bytes: bytes | None
    """UTF-8; None for special tokens."""
    logprob: float
    rank: int
    """1 if no token was more likely."""


class PromptToken(Struct, frozen=True):
    """A token of the prompt."""

    own: RankedToken
    top: tuple[RankedToken, ...]
    """The most likely tokens, in descending order."""


class PromptShown(Struct, frozen=True):
    """A prompt as its caller may see it."""

    ids: tuple[int, ...]
    text: str
    """With special tokens as they are spelled."""
    first: RankedToken
    """The first token; nothing predicts it, so its logprob is 0 and its rank 1."""
    tokens: tuple[PromptToken, ...]
    """All further ones; empty unless the sampling wants their log probabilities."""


def prompt_shown(stream: Stream, tokenizer: Tokenizer) -> PromptShown:
    """The prompt of a stream, once it was computed."""
    ids = stream.prompt_ids

    def ranked(id: int, logprob: float, rank: int) -> RankedToken:
        return RankedToken(id, *tokenizer.spelling(id), max(logprob, LEAST), rank)

    def scored(id: int, found: PromptLogprob) -> PromptToken:
        top = enumerate(found.logprobs.top, start=1)
        most_likely = tuple(ranked(other, logprob, rank) for rank, (other, logprob) in top)
        return PromptToken(ranked(id, found.logprobs.sampled, found.rank), most_likely)

    scores: Sequence[PromptLogprob] = stream.prompt_logprobs
    tokens = tuple(scored(id, found) for id, found in zip(ids[1:], scores, strict=False))
    return PromptShown(ids, tokenizer.detokenise(ids), ranked(ids[0], 0.0, 1), tokens)
