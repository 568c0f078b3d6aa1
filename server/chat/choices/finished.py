"""A reply that has ended, with the text of its choices: what a whole response is written from, and what is kept."""

from collections.abc import Iterable, Sequence

from msgspec import Struct

from server.chat.choices.logprobs import TokenLogprob
from server.chat.choices.prompt import PromptShown
from server.chat.choices.reply_text import Piece
from server.chat.tools.calls import CallPart, whole_calls
from server.engine.sequence import Finish
from server.knowledge.grounding.citations import Citation
from server.metering.ledger.records import Outcome, Usage


class FinishedChoice(Struct, frozen=True):
    """One choice that has ended."""

    text: str
    finish: Finish
    logprobs: tuple[TokenLogprob, ...] = ()
    ids: tuple[int, ...] = ()
    """Every sampled id."""
    prompt: PromptShown | None = None
    sampled: int = 0
    """The number of tokens."""
    stop: str | None = None
    """The stop string that ended it."""
    calls: tuple[CallPart, ...] = ()
    """Each whole."""
    citations: tuple[Citation, ...] = ()
    """The passages that support it."""

    @property
    def piece(self) -> Piece:
        """The choice as one piece, of number 0."""
        ended = (self.stop, self.calls, self.citations)
        return Piece(self.text, self.logprobs, 0, self.ids, self.prompt, self.sampled, *ended)


class FinishedReply(Struct, frozen=True):
    """A reply that has ended, with its text."""

    choices: tuple[FinishedChoice, ...]
    usage: Usage
    ended_by_server: Outcome | None = None
    clamped: int | None = None
    """The `max_tokens` that was granted, if more was asked for."""

    @property
    def finish(self) -> Finish:
        """Why the first choice ended."""
        return self.choices[0].finish

    @property
    def finishes(self) -> tuple[Finish, ...]:
        """Why each choice ended."""
        return tuple(choice.finish for choice in self.choices)


def finished_choices(pieces: Iterable[Piece], finishes: Sequence[Finish]) -> tuple[FinishedChoice, ...]:
    """The choices of a reply from all its pieces, and why each ended."""
    parts: list[list[Piece]] = [[] for _ in finishes]
    for piece in pieces:
        parts[piece.choice].append(piece)
    return tuple(map(_finished, parts, finishes))


def _finished(pieces: Sequence[Piece], finish: Finish) -> FinishedChoice:
    return FinishedChoice(
        "".join(piece.text for piece in pieces),
        finish,
        tuple(token for piece in pieces for token in piece.logprobs),
        tuple(id for piece in pieces for id in piece.ids),
        next((piece.prompt for piece in pieces if piece.prompt), None),
        max((piece.sampled for piece in pieces), default=0),
        next((piece.stop for piece in pieces if piece.stop), None),
        whole_calls(part for piece in pieces for part in piece.calls),
        next((piece.citations for piece in pieces if piece.citations), ()),
    )
