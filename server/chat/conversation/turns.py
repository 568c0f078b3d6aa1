"""Turns of a conversation, and what of them the model reads."""

from collections.abc import Callable, Mapping, Sequence

from msgspec import Struct

from server.chat.conversation.transcript import Transcript
from server.errors import Conflict

Counter = Callable[[str], int]


class Turn(Struct, frozen=True):
    """A question and its reply."""

    reply: Transcript
    message: str | None = None
    """The widget's id of the question, which makes sending it again idempotent."""
    revision: str = ""
    """Revision of the skill that answered; it may have changed when the reply is rated."""
    rating: str | None = None


class Conversation(Struct, frozen=True):
    """Turns in order, the latest last."""

    id: str
    turns: tuple[Turn, ...] = ()
    beginning: bool = False
    """Whether a reply is about to begin, so that no second one may."""
    gone: bool = False
    """Whether it was reset while a token of it may still be valid."""

    @property
    def running(self) -> Transcript | None:
        """The reply being generated, or None."""
        last = self.turns[-1].reply if self.turns else None
        return last if last is not None and last.finish is None else None

    def find(self, id: str) -> Turn | None:
        """The turn whose reply has this id, or None."""
        return next((turn for turn in self.turns if turn.reply.id == id), None)


class Asked(Struct, frozen=True):
    """A question about to be answered by `reply`."""

    reply: Transcript
    skill: str
    visitor: str
    """The visitor's name in the store; empty if unknown."""
    message: str | None
    replace: str | None
    """The id of the latest reply, to replace its turn."""
    revision: str


def history(turns: Sequence[Turn], most: int, tokens: int, count: Counter) -> Sequence[Mapping[str, str]]:
    """The latest answered turns as messages with role and content: at most `most` turns and `tokens` tokens.

    `count` returns the tokens of a text.
    """
    kept: list[Mapping[str, str]] = []
    answered = [turn.reply for turn in turns if turn.reply.text.strip()]
    for reply in reversed(answered[len(answered) - min(most, len(answered)) :]):
        tokens -= count(reply.question) + count(reply.text)
        if tokens < 0:
            break
        kept = [{"role": "user", "content": reply.question}, {"role": "assistant", "content": reply.text}, *kept]
    return kept


def check(conversation: Conversation, asked: Asked) -> None:
    """Raise Conflict if a reply is running, or if the reply to replace is not the latest."""
    if conversation.running or conversation.beginning:
        id = conversation.running.id if conversation.running else None
        raise Conflict(
            "Another reply of this conversation is running; wait for its end or stop it.",
            code="reply_running",
            param=id,
        )
    if asked.replace and (not conversation.turns or conversation.turns[-1].reply.id != asked.replace):
        raise Conflict("Only the latest reply can be replaced.", code="reply_unknown", param="replace")
