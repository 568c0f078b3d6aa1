"""Log probabilities of a reply's tokens, in OpenAI's format; each is sent with the token's first character.

Text may be held back, as half of a character or as the possible start of a stop string; its logprobs wait with it. If a
stop string cuts a token in two, the whole token is reported.
"""

from collections import deque

from msgspec import Struct

from server.engine.stream import Token
from server.text.tokenizer import Tokenizer

LEAST = -9999.0  # OpenAI's value for impossible tokens: JSON has no infinity


class TopLogprob(Struct, frozen=True):
    """One of the most likely tokens at a position."""

    token: str
    bytes: tuple[int, ...] | None
    """UTF-8; None for special tokens."""
    logprob: float


class TokenLogprob(TopLogprob, frozen=True):
    """A token of the reply."""

    top_logprobs: tuple[TopLogprob, ...]


class PendingLogprobs:
    """The logprobs of one reply that are still to be sent; none if its sampling asks for none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held: deque[tuple[int, TokenLogprob]] = deque()
        """Each with the number of characters decoded before its token."""
        self._decoded = 0
        self._sent = 0

    def add(self, token: Token, text: str) -> None:
        """Queue the logprobs of a sampled token; `text` is what decoding it completed, perhaps nothing."""
        if token.logprobs is not None:
            top = tuple(self._top(id, logprob) for id, logprob in token.logprobs.top)
            own = self._top(token.id, token.logprobs.sampled)
            self._held.append((self._decoded, TokenLogprob(own.token, own.bytes, own.logprob, top)))
        self._decoded += len(text)

    def take(self, text: str, *, last: bool = False) -> tuple[TokenLogprob, ...]:
        """Dequeue the logprobs of the tokens that begin in `text`, the next to be sent; with `last`, all the rest."""
        self._sent += len(text)
        taken = []
        while self._held and (last or self._held[0][0] < self._sent):
            taken.append(self._held.popleft()[1])
        return tuple(taken)

    def _top(self, id: int, logprob: float) -> TopLogprob:
        token, raw = self._tokenizer.spelling(id)
        return TopLogprob(token, None if raw is None else tuple(raw), max(logprob, LEAST))
