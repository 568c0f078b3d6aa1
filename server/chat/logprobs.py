"""What the model thought of each token, beside the text that is sent: a score leaves with its token's first character.

So the scores that were sent are those of the text that was sent, whatever is held back as half of a character or as the
beginning of a stop string; where such a string cuts a token, the token is there whole. Fields are OpenAI's.
"""

from collections import deque

from msgspec import Struct

from server.engine.stream import Token
from server.text.tokenizer import Tokenizer

LEAST = -9999.0  # OpenAI's word for impossible: JSON has no infinity


class Alternative(Struct, frozen=True):
    """A token that might stand there."""

    token: str
    bytes: tuple[int, ...] | None
    """None where it stands for no text."""
    logprob: float


class Scored(Alternative, frozen=True):
    """A token that stands in the reply."""

    top_logprobs: tuple[Alternative, ...]


class Scores:
    """The scores of one reply's tokens; without any where its sampling asks for none."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._held: deque[tuple[int, Scored]] = deque()
        """With how many characters stood before each token."""
        self._made = 0
        self._sent = 0

    def add(self, token: Token, text: str) -> None:
        """A token came, and completed so much text."""
        if token.score is not None:
            best = tuple(self._spelled(id, logprob) for id, logprob in token.score.best)
            own = self._spelled(token.id, token.score.logprob)
            self._held.append((self._made, Scored(own.token, own.bytes, own.logprob, best)))
        self._made += len(text)

    def take(self, text: str, *, all: bool = False) -> tuple[Scored, ...]:
        """The scores that go with the next text sent; `all` that are left, where it is the last."""
        self._sent += len(text)
        taken = []
        while self._held and (all or self._held[0][0] < self._sent):
            taken.append(self._held.popleft()[1])
        return tuple(taken)

    def _spelled(self, id: int, logprob: float) -> Alternative:
        token, raw = self._tokenizer.spelling(id)
        return Alternative(token, None if raw is None else tuple(raw), max(logprob, LEAST))
