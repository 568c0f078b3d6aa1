"""The text of a reply from its tokens, up to the first stop string."""

from collections.abc import Sequence
from typing import NamedTuple

from server.chat.logprobs import PendingLogprobs, TokenLogprob
from server.chat.stop_strings import StopStrings
from server.engine.stream import Token
from server.text.tokenizer import TextStream, Tokenizer


class Piece(NamedTuple):
    """Text that is ready to be sent, and the logprobs of the tokens that begin in it."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()


class ReplyText:
    """Decodes one reply; holds back incomplete characters and possible starts of `stop` strings."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str]) -> None:
        self._text = TextStream(tokenizer)
        self._logprobs = PendingLogprobs(tokenizer)
        self._stop_strings = StopStrings(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; nothing after it is returned."""
        return self._stop_strings.matched

    def push(self, token: Token) -> str:
        """The text that can be sent after this token."""
        text = self._text.push(token.id)
        self._logprobs.add(token, text)
        return self._stop_strings.push(text)

    def finish(self) -> str:
        """The text held back, after the last token."""
        return self._stop_strings.push(self._text.finish()) + self._stop_strings.finish()

    def piece(self, text: str, *, last: bool) -> Piece:
        """`text` with its logprobs; the last piece has those of tokens without text too."""
        return Piece(text, self._logprobs.take(text, last=last and not self.stopped))
