"""One metered reply: admit, generate, count, settle; every endpoint goes through here, so none can forget to meter.

Text leaves only after its tokens were counted, and the row is settled before the reader learns that it has all.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from functools import partial
from typing import Protocol

import anyio
from anyio import to_thread
from msgspec import Struct

from server.engine.sequence import Finish, Sampling
from server.engine.stream import Stream
from server.errors import InvalidRequest, Overloaded
from server.metering.ledger import Outcome, Usage
from server.metering.meter import Meter, Reservation
from server.skills import Skill
from server.stop_strings import StopStrings
from server.tokenizer import TextStream, Tokenizer

LONG_TEXT = 4096  # characters; longer texts are tokenised in a thread, so that other streams go on
DRAIN_RETRY_SECONDS = 5


class Engine(Protocol):
    """What is used of the engine."""

    context: int

    def submit(self, prompt: Sequence[int], sampling: Sampling, *, skill: str) -> Stream:
        """Queue a prompt; raises Overloaded or InvalidRequest."""
        ...


class Asked(Struct, frozen=True):
    """What a caller asks for, whatever the wire format; None leaves it to the skill."""

    skill: Skill
    messages: tuple[Mapping[str, str], ...]
    """Role and content of each, the skill's system prompt not among them."""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Replies:
    """Begins replies, knows which are under way, and ends them when the server shuts down."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, meter: Meter) -> None:
        self.draining = False
        self._engine = engine
        self._tokenizer = tokenizer
        self._meter = meter
        self._live: set[Reply] = set()
        self._beginning = 0

    @property
    def idle(self) -> bool:
        """Whether no reply is under way."""
        return not self._live and not self._beginning

    async def writable(self) -> bool:
        """Whether replies can be counted."""
        return await self._meter.writable()

    async def begin(self, request_id: str, asked: Asked) -> "Reply":
        """A reply whose row is open; raises InvalidRequest, Overloaded or LedgerUnavailable. Close it in any case."""
        self._beginning += 1
        try:
            prompt = await self._prompt(asked)
            if self.draining:
                raise Overloaded("The server is shutting down.", retry_after=DRAIN_RETRY_SECONDS)
            stream = self._engine.submit(prompt, self._sampling(asked, len(prompt)), skill=asked.skill.name)
            reservation = await self._admit(stream, request_id, asked.skill.name, len(prompt))
            reply = Reply(stream, TextStream(self._tokenizer), StopStrings(asked.stop), reservation, self._live)
            self._live.add(reply)
            return reply
        finally:
            self._beginning -= 1

    def drain(self) -> None:
        """Refuse new replies; those under way go on."""
        self.draining = True

    def interrupt(self) -> None:
        """End every reply under way after the token it waits for."""
        for reply in self._live:
            reply.interrupt()

    async def _admit(self, stream: Stream, request_id: str, skill: str, prompt: int) -> Reservation:
        """Open the row while the engine begins: nothing leaves before it is open."""
        with anyio.CancelScope(shield=True):
            try:
                reservation = await self._meter.admit(request_id, skill, prompt)
            except BaseException:
                await stream.aclose()
                raise
        return reservation

    async def _prompt(self, asked: Asked) -> list[int]:
        messages = conversation(asked.skill, asked.messages)
        if sum(len(message["content"]) for message in messages) <= LONG_TEXT:
            return self._tokenizer.chat(messages)
        return await to_thread.run_sync(partial(self._long_prompt, messages))

    def _long_prompt(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        """Count first, which is fast: the exact tokenizer takes a second for a megabyte."""
        count = sum(self._tokenizer.count(message["content"]) for message in messages)
        if count >= self._engine.context:
            raise too_long(count, self._engine.context)
        return self._tokenizer.chat(messages)

    def _sampling(self, asked: Asked, prompt: int) -> Sampling:
        """The caller's wishes within the skill's and the engine's limits."""
        skill, room = asked.skill, self._engine.context - prompt
        if room < 1:
            raise too_long(prompt, self._engine.context)
        if asked.max_tokens is not None and asked.max_tokens > skill.max_tokens:
            raise InvalidRequest(
                f"max_tokens is {asked.max_tokens}; the skill {skill.name!r} allows at most {skill.max_tokens}.",
                param="max_tokens",
            )
        return Sampling(
            temperature=skill.temperature if asked.temperature is None else asked.temperature,
            top_p=skill.top_p if asked.top_p is None else asked.top_p,
            seed=asked.seed,
            max_tokens=min(skill.max_tokens, room) if asked.max_tokens is None else asked.max_tokens,
            stop_ids=self._tokenizer.stop_ids,
        )


class Reply:
    """The text of one reply, as it is made; afterwards its `usage` and why it ended."""

    def __init__(
        self,
        stream: Stream,
        text: TextStream,
        stops: StopStrings,
        reservation: Reservation,
        live: "set[Reply]",
    ) -> None:
        self.finish: Finish | None = None
        self._stream = stream
        self._text = text
        self._stops = stops
        self._reservation = reservation
        self._live = live
        self._outcome: Outcome = "stop"
        self._interrupted = False
        self._wait = anyio.CancelScope()

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return self._reservation.usage

    async def pieces(self) -> AsyncIterator[str]:
        """Pieces of text, none empty; settled when it ends. Raises EngineFailed or LedgerUnavailable."""
        try:
            while self.finish is None:
                if text := await self._next():
                    yield text
        except Exception:
            await self.close("error")
            raise
        await self.close(self._outcome)

    async def close(self, outcome: Outcome) -> None:
        """Free the engine's slot and settle; the first outcome counts, and closing again does nothing."""
        with anyio.CancelScope(shield=True):
            await self._stream.aclose()
            try:
                await self._reservation.settle(outcome)
            finally:
                self._live.discard(self)

    def interrupt(self) -> None:
        """End the reply with what it has; its reader is told `length`, since the protocol knows no better word."""
        self._interrupted = True
        self._wait.cancel()

    async def _next(self) -> str:
        """Wait for one token and return the text that may be sent; sets `finish` after the last."""
        if self._interrupted:
            return self._end("length", "server_shutdown")
        with anyio.CancelScope() as self._wait:
            token = await anext(self._stream)
        if self._wait.cancelled_caught:
            return self._end("length", "server_shutdown")
        self._reservation.count(cached=self._stream.cached)
        text = "" if token.finish == "stop" else self._stops.push(self._text.push(token.id))
        if self._stops.matched:
            self.finish = "stop"
        elif token.finish:
            text += self._end(token.finish, token.finish)
        return text

    def _end(self, finish: Finish, outcome: Outcome) -> str:
        """Set why the reply ended, and return the text that was held back."""
        self.finish, self._outcome = finish, outcome
        text = self._stops.push(self._text.finish())
        if self._stops.matched:
            self.finish = self._outcome = "stop"
        return text + self._stops.finish()


def conversation(skill: Skill, messages: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The skill's system prompt and the caller's own as one first message, the skill's examples, then the turns."""
    own = [message["content"] for message in messages if message["role"] == "system"]
    parts = [part for part in (skill.system, *own) if part]
    first = [{"role": "system", "content": "\n\n".join(parts)}] if parts else []
    shown = [
        {"role": role, "content": content}
        for example in skill.examples
        for role, content in (("user", example.question), ("assistant", example.answer))
    ]
    return [*first, *shown, *(message for message in messages if message["role"] != "system")]


def too_long(prompt: int, context: int) -> InvalidRequest:
    """The messages leave no room for a reply."""
    return InvalidRequest(
        f"The messages have {prompt} tokens and the context is {context}; a reply needs at least 1 more.",
        param="messages",
        code="context_length_exceeded",
    )
