"""A reply's place in its grammar: the tokens that may come next, and those forced."""

from collections import deque
from collections.abc import Sequence as Ids
from functools import cached_property
from typing import Any

import numpy
from llguidance import LLMatcher
from llguidance.numpy import allocate_token_bitmask, fill_next_token_bitmask

from server.errors import InvalidRequest
from server.text.grammar.grammar import Grammar, lark

MOST_REASON = 300
"""Characters of a reason: llguidance quotes what it cannot read."""
MEANINGS = {
    "NoExtensionBias": "no text matches it",
    "oneOf constraints": "`oneOf` needs alternatives that exclude each other by a type or a constant; use `anyOf`",
    "lexer precomputation failed": "its regular expressions are too complex",
    "too many expressions": "its regular expressions or constants are too complex",
    "too many states": "its regular expressions are too complex",
    "row has": "it has too many alternatives at one place",
    "Too many items": "it is too ambiguous",
    "Default retriever": "a `$ref` to another document; references are never fetched",
}
"""Sentences of llguidance that speak to its programmers, in a user's words."""
Mask = numpy.ndarray[Any, numpy.dtype[numpy.int32]]


class CompiledGrammar:
    """A grammar for one tokenizer; several replies may begin it."""

    def __init__(self, matcher: LLMatcher, vocabulary: int, ends: frozenset[int], grammar: Grammar) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._ends = ends
        self._grammar = grammar
        self._forced = tuple(matcher.compute_ff_tokens())

    @cached_property
    def lark(self) -> str:
        """The grammar as text, for engines elsewhere."""
        return lark(self._grammar)

    def begin(self) -> "Matcher":
        """The state of a reply without tokens."""
        return Matcher(self._matcher.deep_copy(), self._vocabulary, self._ends, self._grammar.field, self._forced)


class Matcher:
    """The tokens of one reply so far, in its grammar; one thread at a time.

    Where the grammar allows one text only, its tokens are forced: the tokenizer's own for that text. Masks hold this
    too, so that a reply is the same whether forced tokens are appended or sampled.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: int, ends: frozenset[int], field: str, forced: Ids[int]) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self._ends = ends
        self._field = field
        self._forced = deque(forced)
        self._failure = ""

    @property
    def forced(self) -> int | None:
        """The id that must come next, or None where there is a choice."""
        return self._forced[0] if self._forced else None

    @property
    def complete(self) -> bool:
        """Whether the reply matches and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    @property
    def failure(self) -> str:
        """Why the grammar cannot go on; empty while it can."""
        return reason(self._matcher.get_error()) if self._matcher.is_error() else self._failure

    @property
    def error(self) -> InvalidRequest:
        """The error of a reply whose grammar failed on the way."""
        return InvalidRequest(f"{self._field} cannot go on within the reply: {self.failure}.", param=self._field)

    def fail(self, why: str) -> None:
        """Set `failure`, unless it is set."""
        self._failure = self._failure or why

    def fits(self, id: int) -> bool:
        """Whether the grammar allows `id` next, also where the tokenizer would divide a forced text otherwise."""
        return bool(self._matcher.validate_tokens([id])) or (id in self._ends and self._matcher.is_accepting())

    def accept(self, id: int) -> None:
        """Add an id that the grammar allows."""
        if self._forced and id != self._forced[0]:
            self._forced.clear()
        self._matcher.consume_token(id)
        self._advance(self._forced)

    def allowed(self, guess: Ids[int]) -> int:
        """How many leading ids of `guess` the grammar allows, up to an id that ends the reply."""
        forced, taken = self._forced.copy(), 0
        for id in guess:
            if id in self._ends or (id != forced[0] if forced else not self._matcher.validate_tokens([id])):
                break
            self._matcher.consume_token(id)
            self._advance(forced)
            taken += 1
        self._matcher.rollback(taken)
        return taken

    def masks(self, guess: Ids[int]) -> list[Mask]:
        """The ids that may come next, as bits, and after each id of `guess`, all of which are `allowed`."""
        forced, masks = self._forced.copy(), [self._mask(self._forced)]
        for id in guess:
            self._matcher.consume_token(id)
            self._advance(forced)
            masks.append(self._mask(forced))
        self._matcher.rollback(len(guess))
        return masks

    def _advance(self, forced: deque[int]) -> None:
        """Update what is forced after an id was consumed; a run of forced ids is taken whole."""
        if forced:
            forced.popleft()
        if not forced:
            forced.extend(self._matcher.compute_ff_tokens())

    def _mask(self, forced: deque[int]) -> Mask:
        rows = allocate_token_bitmask(1, self._vocabulary)
        mask: Mask = rows[0]
        if forced:
            mask[:] = 0
            mask.view(numpy.uint8)[forced[0] // 8] = 1 << forced[0] % 8
        else:
            fill_next_token_bitmask(self._matcher, rows)
        return mask


def reason(error: str) -> str:
    """The sentence of llguidance's message that a user can act on, without its drawings and dumps."""
    for said, meant in MEANINGS.items():
        if said in error:
            return meant
    if error.startswith("Unimplemented keys: "):
        return f"it uses the keywords {error.partition(': ')[2]}"
    lines = error.partition("<")[0].splitlines() or [""]
    why = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), lines[0])
    return why.strip().rstrip(".")[:MOST_REASON]
