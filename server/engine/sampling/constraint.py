"""The engine's side of grammars: what constrains a reply, and its state, of which the engine reads only token ids."""

from collections.abc import Sequence as Ids
from typing import Any, Protocol

import numpy

from server.errors import InvalidRequest

Mask = numpy.ndarray[Any, numpy.dtype[numpy.int32]]
"""The allowed ids as bits: id 0 is the lowest bit of the first word. Ids beyond its end are not allowed."""


class ConstraintState(Protocol):
    """A reply's place in its grammar; used by one thread at a time."""

    @property
    def forced(self) -> int | None:
        """The only id that may come next; None where there is a choice."""
        ...

    @property
    def complete(self) -> bool:
        """Whether the reply may end here and nothing may follow."""
        ...

    @property
    def failure(self) -> str:
        """Why the state cannot go on, after which its masks mean nothing; empty while it can."""
        ...

    @property
    def error(self) -> InvalidRequest:
        """The error of the reply after a failure."""
        ...

    def fail(self, why: str) -> None:
        """Set `failure`, unless it is set."""
        ...

    def fits(self, id: int) -> bool:
        """Whether `id` is allowed next, also where another id is forced for the same text."""
        ...

    def accept(self, id: int) -> None:
        """Add an allowed id to the reply."""
        ...

    def allowed(self, guess: Ids[int]) -> int:
        """How many leading ids of `guess` may come next."""
        ...

    def masks(self, guess: Ids[int]) -> list[Mask]:
        """The allowed ids now and after each id of `guess`, all of which are allowed."""
        ...


class Constraint(Protocol):
    """What a reply must match; a value that several replies may share."""

    @property
    def lark(self) -> str:
        """The grammar as Lark text with llguidance's extensions."""
        ...

    def begin(self) -> ConstraintState:
        """The state of a reply without tokens."""
        ...
