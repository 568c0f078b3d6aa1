"""One metered reply: admit, generate, count, settle; every endpoint goes through here, so none can forget to meter.

Text leaves only after its tokens were counted, and the row is settled before the reader learns that it has all.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial

import anyio
from anyio import to_thread
from msgspec import Struct

from server.engine.sequence import Finish, Sampling
from server.engine.stream import Stream
from server.errors import InvalidRequest, Overloaded
from server.metering.ledger import Opening, Outcome, Usage
from server.metering.meter import Meter, Reservation
from server.rollout import Model, Rollout
from server.skills import Skill
from server.standing import Standing
from server.stop_strings import StopStrings
from server.tokenizer import TextStream

LONG_TEXT = 4096  # characters; longer texts are tokenised in a thread, so that other streams go on
DRAIN_RETRY_SECONDS = 5


class Asked(Struct, frozen=True):
    """What a caller asks for, whatever the wire format; None leaves it to the skill."""

    skill: Skill
    messages: tuple[Mapping[str, str], ...]
    """Role and content of each, the skill's system prompt not among them."""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int = 0
    min_p: float = 0.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    stop: tuple[str, ...] = ()


class Replies:
    """Begins replies, knows which are under way, and ends them when the server shuts down."""

    def __init__(self, rollout: Rollout, meter: Meter) -> None:
        self.draining = False
        self._rollout = rollout
        self._meter = meter
        self._standing = Standing()
        self._live: dict[Reply, Model] = {}
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
        model = self._rollout.use()  # all of a reply is one model's, whatever is promoted meanwhile
        try:
            prompt = await prompt_of(asked, model)
            if self.draining:
                raise Overloaded("The server is shutting down.", retry_after=DRAIN_RETRY_SECONDS)
            wanted = sampling_of(asked, len(prompt), model)
            standing = self._standing.length(
                prompt,
                (model.name, asked.skill),
                lambda text: model.tokenizer.chat(conversation(asked.skill, [{"role": "user", "content": text}])),
            )
            stream = model.engine.submit(prompt, wanted, skill=asked.skill.name, standing=standing)
            reservation = await self._admit(stream, Opening(request_id, asked.skill.name, model.name, len(prompt)))
            reply = Reply(stream, TextStream(model.tokenizer), StopStrings(asked.stop), reservation, self._ended)
            self._live[reply] = model
            return reply
        except BaseException:
            self._rollout.release(model)
            raise
        finally:
            self._beginning -= 1

    def drain(self) -> None:
        """Refuse new replies; those under way go on."""
        self.draining = True

    def interrupt(self) -> None:
        """End every reply under way after the token it waits for."""
        for reply in self._live:
            reply.interrupt()

    def _ended(self, reply: "Reply") -> None:
        """A reply was closed, for the first time or again."""
        if model := self._live.pop(reply, None):
            self._rollout.release(model)

    async def _admit(self, stream: Stream, opening: Opening) -> Reservation:
        """Open the row while the engine begins: nothing leaves before it is open."""
        with anyio.CancelScope(shield=True):
            try:
                reservation = await self._meter.admit(opening)
            except BaseException:
                await stream.aclose()
                raise
        return reservation


class Reply:
    """The text of one reply, as it is made; afterwards its `usage` and why it ended."""

    def __init__(
        self,
        stream: Stream,
        text: TextStream,
        stops: StopStrings,
        reservation: Reservation,
        ended: "Callable[[Reply], None]",
    ) -> None:
        self.finish: Finish | None = None
        self._stream = stream
        self._text = text
        self._stops = stops
        self._reservation = reservation
        self._ended = ended
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
                self._ended(self)

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


async def prompt_of(asked: Asked, model: Model) -> list[int]:
    """The ids of the conversation, as `model` reads them."""
    messages = conversation(asked.skill, asked.messages)
    if sum(len(message["content"]) for message in messages) <= LONG_TEXT:
        return model.tokenizer.chat(messages)
    return await to_thread.run_sync(partial(long_prompt, messages, model))


def long_prompt(messages: Sequence[Mapping[str, str]], model: Model) -> list[int]:
    """Count first, which is fast: the exact tokenizer takes a second for a megabyte."""
    count = sum(model.tokenizer.count(message["content"]) for message in messages)
    if count >= model.engine.context:
        raise too_long(count, model.engine.context)
    return model.tokenizer.chat(messages)


def sampling_of(asked: Asked, prompt: int, model: Model) -> Sampling:
    """The caller's wishes within the skill's and the engine's limits."""
    skill, room = asked.skill, model.engine.context - prompt
    if room < 1:
        raise too_long(prompt, model.engine.context)
    if asked.max_tokens is not None and asked.max_tokens > skill.max_tokens:
        raise InvalidRequest(
            f"max_tokens is {asked.max_tokens}; the skill {skill.name!r} allows at most {skill.max_tokens}.",
            param="max_tokens",
        )
    return Sampling(
        temperature=skill.temperature if asked.temperature is None else asked.temperature,
        top_p=skill.top_p if asked.top_p is None else asked.top_p,
        top_k=asked.top_k,
        min_p=asked.min_p,
        frequency_penalty=asked.frequency_penalty,
        presence_penalty=asked.presence_penalty,
        logit_bias=asked.logit_bias,
        seed=asked.seed,
        max_tokens=min(skill.max_tokens, room) if asked.max_tokens is None else asked.max_tokens,
        stop_ids=model.tokenizer.stop_ids,
    )


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
