"""The history of widget conversations, in memory only: bounded in turns and time, and in number.

A conversation is kept from its first message on; one that was reset is remembered as gone, so that its tokens end too.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence

from server.chat.conversation.recording import Recording

GONE_SECONDS = 900.0  # as long as a token can live
Counter = Callable[[str], int]


class Turn:
    """A question, its reply, and what the visitor thought of it."""

    def __init__(self, question: str, message: str | None, recording: Recording, revision: str) -> None:
        self.question = question
        self.message = message
        """The id that the widget gave the question, so that it can be sent twice without being asked twice."""
        self.recording = recording
        self.revision = revision
        """Of the skill that made the reply: another may be served when it is rated."""
        self.rating: str | None = None


class Conversation:
    """Turns in order, the latest last; belongs to one skill, one origin and at most one person."""

    def __init__(self, id: str, skill: str) -> None:
        self.id = id
        self.skill = skill
        self.turns: list[Turn] = []
        self.beginning = False
        """Whether a reply is about to begin: a second one must not, meanwhile."""
        self.used = 0.0

    @property
    def running(self) -> Recording | None:
        """The reply being made, if there is one."""
        last = self.turns[-1].recording if self.turns else None
        return last if last is not None and last.finish is None else None

    def reply(self, id: str) -> Turn | None:
        """The turn whose reply has this id."""
        return next((turn for turn in self.turns if turn.recording.id == id), None)

    def add(self, turn: Turn, most: int) -> None:
        """Append a turn, and drop the oldest beyond `most` earlier ones."""
        self.turns = [*self.turns[len(self.turns) - min(len(self.turns), most) :], turn]

    def history(self, turns: int, tokens: int, count: Counter) -> Sequence[Mapping[str, str]]:
        """The latest answered turns as messages: at most so many turns and so many tokens."""
        kept: list[Mapping[str, str]] = []
        answered = [turn for turn in self.turns if turn.recording.text.strip()]
        for turn in reversed(answered[len(answered) - min(turns, len(answered)) :]):
            tokens -= count(turn.question) + count(turn.recording.text)
            if tokens < 0:
                break
            answer = {"role": "assistant", "content": turn.recording.text}
            kept = [{"role": "user", "content": turn.question}, answer, *kept]
        return kept


class Conversations:
    """At most `most` conversations; one is forgotten after `seconds` without a message."""

    def __init__(self, *, seconds: float, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._most = most
        self._clock = clock
        self._kept: OrderedDict[str, Conversation] = OrderedDict()
        self._gone: OrderedDict[str, float] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def gone(self, id: str) -> bool:
        """Whether the conversation was reset not long ago."""
        self._expire()
        return id in self._gone

    def find(self, id: str) -> Conversation | None:
        """The conversation, if it is kept."""
        self._expire()
        return self._kept.get(id)

    def use(self, id: str, skill: str) -> Conversation:
        """The conversation, made if it is not kept; it counts as used now."""
        self._expire()
        found = self._kept.setdefault(id, Conversation(id, skill))
        found.used = self._clock()
        self._kept.move_to_end(id)
        if len(self._kept) > self._most:
            del self._kept[next(self._droppable())]
        return found

    def forget(self, id: str) -> Conversation | None:
        """Forget the conversation, and remember that it is gone."""
        self._gone[id] = self._clock()
        if len(self._gone) > self._most:
            self._gone.popitem(last=False)
        return self._kept.pop(id, None)

    def _droppable(self) -> Iterator[str]:
        """The least recently used first; those with a reply under way only if there is no other."""
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
