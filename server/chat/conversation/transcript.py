"""A widget reply as numbered events: `start`, one `text` for each piece, `citations` if any, `end` or `error`.

Ids count from 0 without gaps. A reply whose server died ends as INTERRUPTED, maybe before what was read.
"""

from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from server.errors import SecateurError

ERROR, INTERRUPTED = "error", "interrupted"


class Event(NamedTuple):
    """One event."""

    id: int
    name: str
    data: Any


class Citation(Struct, frozen=True, omit_defaults=True):
    """A reference shown below the reply; `url` is http or https."""

    title: str
    url: str
    passage: str = ""
    """The text that supports the reply; empty for one of the skill's own references."""


class Written(Struct, frozen=True):
    """A turn as it is kept, before encryption."""

    question: str
    text: str = ""
    ends: tuple[int, ...] = ()
    """The end of each piece in `text`."""
    last: tuple[tuple[str, Any], ...] = ()
    finish: str | None = None
    citations: tuple[Citation, ...] = ()


class Transcript:
    """The events so far of the reply `id` to `question`."""

    def __init__(self, id: str, conversation: str, question: str) -> None:
        self.id = id
        self.conversation = conversation
        self.question = question
        self.text = ""
        self.finish: str | None = None
        """Why it ended, or None while it is generated."""
        self.citations: tuple[Citation, ...] = ()
        self._ends = array("I")  # a list of strings takes ten times the memory
        self._last: tuple[tuple[str, Any], ...] = ()

    @classmethod
    def decode(cls, id: str, conversation: str, content: bytes) -> "Transcript":
        """The transcript that `encode` wrote."""
        written = msgspec.json.decode(content, type=Written)
        made = cls(id, conversation, written.question)
        made.text, made.finish, made.citations = written.text, written.finish, written.citations
        made._ends, made._last = array("I", written.ends), written.last
        return made

    def encode(self) -> bytes:
        """The transcript as JSON."""
        return msgspec.json.encode(
            Written(self.question, self.text, tuple(self._ends), self._last, self.finish, self.citations)
        )

    @property
    def next(self) -> int:
        """The id of the next event."""
        return 1 + len(self._ends) + len(self._last)

    def add(self, piece: str) -> None:
        """Append a piece of text, which is not empty."""
        self.text += piece
        self._ends.append(len(self.text))

    def end(self, finish: str, usage: dict[str, int] | None, citations: tuple[Citation, ...] = ()) -> None:
        """End the reply; a reply without text cites nothing."""
        self.citations = citations if self.text else ()
        cited = [("citations", {"citations": citations})] if self.citations else []
        self.finish, self._last = finish, (*cited, ("end", {"finish": finish, "usage": usage}))

    def fail(self, error: SecateurError) -> None:
        """End the reply with an error."""
        problem = {"message": error.message, "type": error.type, "param": None, "code": error.code}
        retry_after = getattr(error, "retry_after", None)
        self.finish, self._last = ERROR, (("error", {"error": problem, "retry_after": retry_after}),)

    def events(self, first: int) -> Iterator[Event]:
        """The existing events from id `first` on; of an interrupted reply at least the last."""
        yield from (self._event(id) for id in range(first, self.next))
        if self.finish == INTERRUPTED and first >= self.next:
            yield Event(first, *self._last[-1])

    def _event(self, id: int) -> Event:
        if id == 0:
            return Event(0, "start", {"reply": self.id, "conversation": self.conversation})
        if id <= len(self._ends):
            begin = self._ends[id - 2] if id > 1 else 0
            return Event(id, "text", {"text": self.text[begin : self._ends[id - 1]]})
        return Event(id, *self._last[id - 1 - len(self._ends)])
