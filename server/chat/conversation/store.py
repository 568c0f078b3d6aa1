"""Widget conversations, in memory only; bounded in number, turns and time.

A reset conversation is remembered as gone, so that its tokens are refused too.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence

from server.chat.conversation.recording import Recording

GONE_SECONDS = 900.0  # the longest life of a session token
Counter = Callable[[str], int]


class Turn:
    """A question, its reply and its rating."""

    def __init__(self, question: str, message: str | None, recording: Recording, revision: str) -> None:
        self.question = question
        self.message = message
        """The widget's id of the question, which makes sending it again idempotent."""
        self.recording = recording
        self.revision = revision
        """Revision of the skill that answered; it may have changed when the reply is rated."""
        self.rating: str | None = None


class Conversation:
    """Turns in order, the latest last, of one skill, origin and visitor."""

    def __init__(self, id: str, skill: str) -> None:
        self.id = id
        self.skill = skill
        self.turns: list[Turn] = []
        self.beginning = False
        """Whether a reply is about to begin, so that no second one may."""
        self.used = 0.0
        """When it was last used, on the store's clock."""

    @property
    def running(self) -> Recording | None:
        """The reply being generated, or None."""
        last = self.turns[-1].recording if self.turns else None
        return last if last is not None and last.finish is None else None

    def reply(self, id: str) -> Turn | None:
        """The turn whose reply has this id, or None."""
        return next((turn for turn in self.turns if turn.recording.id == id), None)

    def add(self, turn: Turn, most: int) -> None:
        """Append a turn and drop the oldest beyond `most` earlier ones."""
        self.turns = [*self.turns[len(self.turns) - min(len(self.turns), most) :], turn]


def history(turns: Sequence[Turn], most: int, tokens: int, count: Counter) -> Sequence[Mapping[str, str]]:
    """The latest answered turns as messages with role and content: at most `most` turns and `tokens` tokens.

    `count` returns the tokens of a text.
    """
    kept: list[Mapping[str, str]] = []
    answered = [turn for turn in turns if turn.recording.text.strip()]
    for turn in reversed(answered[len(answered) - min(most, len(answered)) :]):
        tokens -= count(turn.question) + count(turn.recording.text)
        if tokens < 0:
            break
        answer = {"role": "assistant", "content": turn.recording.text}
        kept = [{"role": "user", "content": turn.question}, answer, *kept]
    return kept


class Conversations:
    """At most `most` conversations, each forgotten after `seconds` without a message; `clock` is monotonic."""

    def __init__(self, *, seconds: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._kept: OrderedDict[str, Conversation] = OrderedDict()
        self._gone: OrderedDict[str, float] = OrderedDict()

    def gone(self, id: str) -> bool:
        """Whether the conversation was reset while a token of it may still be valid."""
        self._expire()
        return id in self._gone

    def find(self, id: str) -> Conversation | None:
        """The conversation, or None if it is unknown or forgotten."""
        self._expire()
        return self._kept.get(id)

    def use(self, id: str, skill: str) -> Conversation:
        """Find or create a conversation and restart its time to live; may evict the least recently used one."""
        self._expire()
        found = self._kept.setdefault(id, Conversation(id, skill))
        found.used = self._clock()
        self._kept.move_to_end(id)
        if len(self._kept) > self._most:
            del self._kept[next(self._droppable())]
        return found

    def forget(self, id: str) -> Conversation | None:
        """Drop the conversation and remember it as gone; returns it if it was known."""
        self._gone[id] = self._clock()
        if len(self._gone) > self._most:
            self._gone.popitem(last=False)
        return self._kept.pop(id, None)

    def _droppable(self) -> Iterator[str]:
        """Ids in the order of eviction: the least recently used first, those with a running reply last."""
        yield from (id for id, kept in self._kept.items() if not kept.running and not kept.beginning)
        yield from self._kept

    def _expire(self) -> None:
        now = self._clock()
        while self._gone and next(iter(self._gone.values())) < now - GONE_SECONDS:
            self._gone.popitem(last=False)
        while self._kept:
            oldest = next(iter(self._kept.values()))
            if oldest.used > now - self._seconds or oldest.running or oldest.beginning:
                return
            self._kept.popitem(last=False)
