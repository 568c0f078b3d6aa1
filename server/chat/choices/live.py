"""The choices of a reply while they are generated: `n` for each prompt."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from server.chat.choices.reply_text import Piece, ReplyText, TextOptions
from server.chat.request import ReplyRequest, tools_of
from server.chat.tools.calls import CallReader
from server.engine.sequence import Finish, Sampling
from server.engine.stream import Stream
from server.metering.ledger.records import Outcome, Usage
from server.metering.meter import Reservation
from server.models.rollout import Model

OUTCOMES: tuple[Outcome, ...] = ("refused", "verbatim", "stop", "length", "budget", "server_shutdown")
"""How a choice can end; of several, the reply has the last of these."""


class ClosableStream(Protocol):
    """What a choice reads."""

    @property
    def waited(self) -> float | None:
        """Seconds until its prefill began."""

    @property
    def reported(self) -> bool:
        """Whether a backend counted the tokens."""

    async def aclose(self) -> None:
        """Free the engine's slot."""


class AnyChoice(Protocol):
    """A choice that a model generates, `Choice`, or a written one."""

    finish: Finish | None
    outcome: Outcome

    @property
    def index(self) -> int:
        """Its number, from 0."""

    @property
    def stream(self) -> ClosableStream:
        """What it reads."""

    @property
    def computed(self) -> Usage:
        """The tokens that the engine has computed, whether or not they were read."""

    def interrupt(self) -> None:
        """End with the text so far."""

    async def next(self, reservation: Reservation) -> Piece:
        """Wait for the next piece, count it, and set `finish` with the last."""
        ...


class Choice:
    """One choice while it is generated; `leads` if it is the first of its prompt, whose tokens it counts."""

    def __init__(
        self, index: int, stream: Stream, text: ReplyText, *, leads: bool, calls: CallReader | None = None
    ) -> None:
        """`calls` reads the calls of functions that the text contains."""
        self.index = index
        self.stream = stream
        self.leads = leads
        self.finish: Finish | None = None
        self.outcome: Outcome = "stop"
        self._text = text
        self._calls = calls
        self._interrupted = False
        self._counted = 0  # tokens that the ledger has and the reader has not

    @property
    def computed(self) -> Usage:
        """The tokens that the engine has computed, whether or not they were read."""
        prompt = self.leads and self.stream.prompt_computed
        cached = self.stream.cached if prompt else 0
        return Usage(self.stream.prompt if prompt else 0, cached, self.stream.sampled)

    def interrupt(self) -> None:
        """End with the text so far; `finish` is then `length`, the nearest word of OpenAI's protocol."""
        self._interrupted = True
        self.stream.put(None)

    async def next(self, reservation: Reservation) -> Piece:
        """Wait for the next token and count it; the piece may be empty. Sets `finish` after the last token.

        Raises EngineFailed or LedgerUnavailable.
        """
        text = await self._next(reservation)
        finish = self.finish if self.outcome in ("stop", "length") else None
        piece = self._text.piece(text, last=self.finish is not None)._replace(choice=self.index, finish=finish)
        if self._calls is None:
            return piece
        own, calls = self._calls.push(piece.text, last=self.finish is not None)
        return piece._replace(text=own, calls=tuple(calls))

    async def _next(self, reservation: Reservation) -> str:
        """The text that can be sent after the next token."""
        if self._interrupted:
            return self._end("length", "server_shutdown")
        token = await anext(self.stream, None)
        if token is None and self.stream.most == 0 and self.stream.prompt_computed:
            await self._count(reservation, 0)
            return self._end("length", "length")
        if token is None:  # interrupted, or closed by another task
            return self._end("length", "server_shutdown")
        if self._counted:
            self._counted -= 1
        else:  # all tokens of an engine step are written at once
            self._counted = self.stream.ready
            await self._count(reservation, 1 + self._counted)
        text = self._text.push(token)
        if self._text.stopped:
            self.finish = "stop"
        elif token.finish:
            text += self._end(token.finish, reservation.full if token.finish == "length" else "stop")
        return text

    async def _count(self, reservation: Reservation, tokens: int) -> None:
        """Count tokens, durably; with the first of a choice that leads also those of its prompt."""
        first = self.leads and not self._text.started
        prompt = Usage(self.stream.prompt, self.stream.cached) if first else Usage()
        await reservation.count(tokens, prompt=prompt, choice=self.index)

    def _end(self, finish: Finish, outcome: Outcome) -> str:
        """Set why the choice ended, and return the text that was held back."""
        self.finish, self.outcome = finish, outcome
        text = self._text.finish()
        if self._text.stopped:
            self.finish = self.outcome = "stop"
        return text


async def generate(choices: Sequence[AnyChoice], reservation: Reservation) -> AsyncIterator[Piece]:
    """The pieces of all choices as they come; the first failure of one ends it with that error."""
    if len(choices) == 1:
        while choices[0].finish is None:
            yield await choices[0].next(reservation)
        return
    waiting = {asyncio.ensure_future(choice.next(reservation)): choice for choice in choices}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=lambda task: waiting[task].index):
                piece, choice = task.result(), waiting.pop(task)
                if choice.finish is None:
                    waiting[asyncio.ensure_future(choice.next(reservation))] = choice
                yield piece
    finally:
        for task in waiting:
            task.cancel()
            task.add_done_callback(lambda task: task.cancelled() or task.exception())  # retrieved: the first is raised


def choices_of(request: ReplyRequest, streams: Sequence[Stream], model: Model, sampling: Sampling) -> list[Choice]:
    """The choices that `streams` generate, those of one prompt beside each other."""
    options = TextOptions(request.stop, sampling.min_tokens, request.stop_token, request.ids)
    made = []
    for index, stream in enumerate(streams):
        leader = streams[index - index % request.choices]
        text = ReplyText(model.tokenizer, options, leader if request.prompt_shown else None)
        calls = tools_of(request, model).reader if request.tools.callable else None
        made.append(Choice(index, stream, text, leads=stream is leader, calls=calls))
    return made
