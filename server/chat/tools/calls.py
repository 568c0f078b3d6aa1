"""Reads the calls of a reply as it is generated; the grammar fixes the text around names and arguments."""

import secrets
from collections.abc import Iterable, Iterator
from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from server.text.tool_form import ToolForm

State = Literal["text", "name", "arguments", "end"]


class CallPart(Struct, frozen=True):
    """A part of a call: the first has `id` and `name`, and all together the arguments as JSON."""

    number: int
    """Which of the reply's calls, from 0."""
    id: str = ""
    name: str = ""
    arguments: str = ""


class CallReader:
    """Reads the calls of one choice, written as `form`.

    `required`: the reply begins with one; `alone`: one begins the reply, or there is none.
    """

    def __init__(self, form: ToolForm, *, required: bool, alone: bool = False) -> None:
        self._form = form
        self._alone = alone or not form.trigger
        self._state: State = "name" if required else "text"
        self._pending = ""
        """Text that was received and not yet taken."""
        self._before = form.before
        """What precedes the next name."""
        self._begun = False
        self._number = -1
        self._depth = 0
        self._quoted = self._escaped = False

    def push(self, text: str, *, last: bool = False) -> tuple[str, list[CallPart]]:
        """The reply's own text and the parts of calls that `text` completes; with `last`, also what was held back."""
        self._pending += text
        own = self._own_text(last=last) if self._state == "text" else ""
        return own, list(self._parts())

    def _own_text(self, *, last: bool) -> str:
        """Take the text before a call; a possible beginning of a call is held back unless it is the `last`."""
        trigger, pending = self._form.trigger, self._pending
        if self._alone:  # the first character decides
            end = 0 if pending and not self._begun and pending[0] == self._form.before[0] else -1
            self._begun = self._begun or bool(pending)
        else:
            end = pending.find(trigger)
        if end >= 0:
            self._state = "name"
        else:
            end = len(pending) if last or self._alone else len(pending) - _overlap(pending, trigger)
        self._pending = pending[end:]
        return pending[:end]

    def _parts(self) -> Iterator[CallPart]:
        """Take the parts that are complete."""
        while True:
            if self._state == "name" and (name := self._name()) is not None:
                self._number += 1
                self._state = "arguments"
                yield CallPart(self._number, f"call_{secrets.token_hex(12)}", name)
            elif self._state == "arguments" and self._pending:
                yield CallPart(self._number, arguments=self._arguments())
            elif self._state == "end" and len(self._pending) > len(self._form.after):
                self._pending = self._pending[len(self._form.after) :]
                self._before = (self._form.between or "") + self._form.before
                self._state = "name"
            else:
                return

    def _name(self) -> str | None:
        """Take the next name and the text around it; None until both have arrived."""
        name, quote, _ = self._pending[len(self._before) :].partition('"')
        end = len(self._before) + len(name) + len(self._form.middle)
        if not quote or len(self._pending) < end:
            return None
        self._pending = self._pending[end:]
        return name

    def _arguments(self) -> str:
        """Take arguments up to the end of their object, which ends the state."""
        for place, letter in enumerate(self._pending):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = letter == "\\"
                self._quoted = letter != '"'
            elif letter == '"':
                self._quoted = True
            else:
                self._depth += {"{": 1, "}": -1}.get(letter, 0)
                if not self._depth:
                    self._state = "end"
                    taken, self._pending = self._pending[: place + 1], self._pending[place + 1 :]
                    return taken
        taken, self._pending = self._pending, ""
        return taken


def _overlap(text: str, word: str) -> int:
    """The length of the longest end of `text` that begins `word`."""
    return next((size for size in range(min(len(text), len(word)), 0, -1) if word.startswith(text[-size:])), 0)


def whole_calls(parts: Iterable[CallPart]) -> tuple[CallPart, ...]:
    """The calls of a reply, each whole, from all their parts."""
    calls: list[CallPart] = []
    for part in parts:
        if part.number == len(calls):
            calls.append(part)
        else:
            calls[-1] = replace(calls[-1], arguments=calls[-1].arguments + part.arguments)
    return tuple(calls)
