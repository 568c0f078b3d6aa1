"""The text of a choice from its tokens, up to the first stop string."""

from typing import NamedTuple

from msgspec import Struct

from server.chat.choices.logprobs import PendingLogprobs, TokenLogprob
from server.chat.choices.prompt import PromptShown, prompt_shown
from server.chat.choices.stop_strings import StopStrings
from server.chat.tools.calls import CallPart
from server.engine.sequence import Finish
from server.engine.stream import Stream, Token
from server.knowledge.grounding.citations import Citation
from server.text.tokenizer import TextStream, Tokenizer


class Piece(NamedTuple):
    """Text of a choice that is ready to be sent, and the logprobs of the tokens that begin in it."""

    text: str
    logprobs: tuple[TokenLogprob, ...] = ()
    choice: int = 0
    """The number of the choice, from 0."""
    ids: tuple[int, ...] = ()
    """The sampled ids, whether or not their text is ready; none unless asked for."""
    prompt: PromptShown | None = None
    """With the first piece of a choice, if the caller may see the prompt."""
    sampled: int = 0
    """The number of tokens of the choice so far."""
    stop: str | None = None
    """The stop string that ended the choice, with its last piece."""
    calls: tuple[CallPart, ...] = ()
    """Parts of calls, whose text is not in `text`."""
    citations: tuple[Citation, ...] = ()
    """The passages that support the choice, with its last piece."""
    finish: Finish | None = None
    """Why the choice ended, with its last piece; None also if the server ended it."""

    @property
    def empty(self) -> bool:
        """Whether there is nothing to send."""
        return not (self.text or self.logprobs or self.ids or self.prompt or self.stop or self.calls or self.citations)


class TextOptions(Struct, frozen=True):
    """How a reply's tokens become text."""

    stop: tuple[str, ...] = ()
    """Strings that end the reply."""
    min_tokens: int = 0
    """Tokens in which no stop string is looked for."""
    stop_token: bool = False
    """Whether the token that ended the reply has logprobs too, as in OpenAI's completions; it has no text."""
    ids: bool = False
    """Whether pieces have the sampled ids."""


class ReplyText:
    """Decodes one choice; holds back incomplete characters and possible starts of stop strings.

    `shown` is the stream whose prompt comes with the first piece; None: it is not shown.
    """

    def __init__(self, tokenizer: Tokenizer, options: TextOptions, shown: Stream | None = None) -> None:
        self.started = False
        """Whether a token was pushed."""
        self._tokenizer = tokenizer
        self._options = options
        self._shown = shown
        self._text = TextStream(tokenizer)
        self._logprobs = PendingLogprobs(tokenizer)
        self._stop_strings = StopStrings(options.stop)
        self._ids: list[int] = []
        self._pushed = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found; nothing after it is returned."""
        return self._stop_strings.found is not None

    def push(self, token: Token) -> str:
        """The text that can be sent after this token."""
        self.started = True
        self._pushed += 1
        if self._options.ids:
            self._ids.append(token.id)
        if token.finish == "stop" and not token.complete:
            if self._options.stop_token:
                self._logprobs.add(token, "")
            return ""
        text = self._text.push(token.id) if token.text is None else token.text
        self._logprobs.add(token, text)
        return text if self._pushed <= self._options.min_tokens else self._stop_strings.push(text)

    def finish(self) -> str:
        """The text held back, after the last token."""
        return self._stop_strings.push(self._text.finish()) + self._stop_strings.finish()

    def piece(self, text: str, *, last: bool) -> Piece:
        """`text` with its logprobs and ids; the last piece has the logprobs of tokens without text too."""
        logprobs = self._logprobs.take(text, last=last and not self.stopped)
        shown, self._shown = self._shown, None
        computed = shown is not None and shown.prompt_computed  # not if the reply was interrupted before
        prompt = prompt_shown(shown, self._tokenizer) if shown and computed else None
        ids, self._ids = tuple(self._ids), []
        return Piece(text, logprobs, ids=ids, prompt=prompt, sampled=self._pushed, stop=self._stop_strings.found)
