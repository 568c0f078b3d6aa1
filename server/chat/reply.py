"""One metered reply: admit, generate, count, settle; every endpoint goes through here, so none can forget to meter.

Tokens are reserved before the engine begins, text leaves only after the ledger has its tokens, and the row is settled,
with every id that was sampled, before the reader learns that it has all.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from datetime import UTC, datetime
from typing import NamedTuple

import anyio
from msgspec.structs import replace

from server.chat.logprobs import Scored, Scores
from server.chat.request import ReplyRequest, prompt_of, sampling_of
from server.chat.shared_prefix import Standing
from server.chat.stop_strings import StopStrings
from server.engine.sequence import Finish, Sampling
from server.engine.stream import Stream, Token
from server.errors import Overloaded
from server.metering.ledger.records import Limits, Opening, Outcome, Usage
from server.metering.meter import Meter, Reservation
from server.models.rollout import Model, Rollout
from server.skills.catalogue import Skill
from server.skills.limits import RateLimits
from server.skills.turns import conversation
from server.text.tokenizer import TextStream, Tokenizer

DRAIN_RETRY_SECONDS = 5


class Replies:
    """Begins replies, knows which are under way, and ends them when the server shuts down."""

    def __init__(self, rollout: Rollout, meter: Meter, rate_limits: RateLimits) -> None:
        self.draining = False
        self._rollout = rollout
        self._meter = meter
        self._rate_limits = rate_limits
        self._standing = Standing()
        self._live: dict[Reply, tuple[Model, Skill]] = {}
        self._beginning = 0

    @property
    def idle(self) -> bool:
        """Whether no reply is under way."""
        return not self._live and not self._beginning

    async def writable(self) -> bool:
        """Whether replies can be counted."""
        return await self._meter.writable()

    async def begin(self, request_id: str, asked: ReplyRequest) -> "Reply":
        """A reply whose row is open and whose tokens are reserved. Close it in any case.

        Raises InvalidRequest, RateLimited, Overloaded, BudgetExceeded, LedgerUnavailable, or Answered for a known
        Idempotency-Key.
        """
        self._refuse_while_draining()
        rates = await self._rate_limits.enter(asked.skill)
        try:
            return await self._begin(request_id, asked, rates)
        except BaseException:
            self._rate_limits.leave(asked.skill)
            raise

    async def _begin(self, request_id: str, asked: ReplyRequest, rates: Mapping[str, str]) -> "Reply":
        """`begin` past the gate."""
        model = self._rollout.use(asked.skill.model)  # all of a reply is one model's, whatever is promoted meanwhile
        self._beginning += 1
        try:
            prompt = await prompt_of(asked, model)
            self._refuse_while_draining()
            wanted = sampling_of(asked, len(prompt), model)
            spent = await self._rate_limits.spend(asked.skill, len(prompt) + wanted.max_tokens)
            opening = opening_of(request_id, asked, model, len(prompt), wanted.max_tokens)
            with anyio.CancelScope(shield=True):  # whoever opens a row must learn of it, to close it
                reservation = await self._meter.admit(opening)
            sampling = replace(wanted, max_tokens=reservation.granted)
            stream = await self._submit(prompt, sampling, reservation, asked.skill, model)
            reply = Reply(stream, model.tokenizer, StopStrings(asked.stop), reservation, self._ended)
            reply.rates = {**rates, **spent}
            self._live[reply] = (model, asked.skill)
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
        if live := self._live.pop(reply, None):
            self._rollout.release(live[0])
            self._rate_limits.leave(live[1])

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise Overloaded("The server is shutting down.", retry_after=DRAIN_RETRY_SECONDS, reason="draining")

    async def _submit(
        self, prompt: list[int], sampling: Sampling, reservation: Reservation, skill: Skill, model: Model
    ) -> Stream:
        """Let the engine begin; a row whose reply it refuses is closed at once."""
        try:
            standing = self._standing.length(
                prompt,
                (model.name, skill, datetime.now(UTC).date()),  # a system prompt may say which day it is
                lambda text: model.tokenizer.chat(conversation(skill, [{"role": "user", "content": text}])),
            )
            return model.engine.submit(prompt, sampling, skill=skill.name, standing=standing)
        except BaseException:
            with anyio.CancelScope(shield=True):
                await reservation.settle("rejected", sampled=0, cached=0)
            raise


class Piece(NamedTuple):
    """Some text of a reply, and the scores of the tokens that begin in it, where they are asked for."""

    text: str
    scores: tuple[Scored, ...] = ()


class Reply:
    """The text of one reply, as it is made; afterwards its `usage` and why it ended."""

    def __init__(
        self,
        stream: Stream,
        tokenizer: Tokenizer,
        stops: StopStrings,
        reservation: Reservation,
        ended: "Callable[[Reply], None]",
    ) -> None:
        self.finish: Finish | None = None
        self.rates: Mapping[str, str] = {}
        """Headers that say what is left of the skill's limits a minute."""
        self._stream = stream
        self._text = TextStream(tokenizer)
        self._scores = Scores(tokenizer)
        self._stops = stops
        self._reservation = reservation
        self._ended = ended
        self._outcome: Outcome = "stop"
        self._interrupted = False
        self._counted = 0  # tokens that the ledger has and that are still to be read

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return self._reservation.usage

    @property
    def ended_by_server(self) -> Outcome | None:
        """Why the server ended the reply before the model or the caller's `max_tokens` did, or None."""
        return self._outcome if self._outcome in ("budget", "server_shutdown") else None

    async def pieces(self) -> AsyncIterator[Piece]:
        """Pieces, none empty, the last perhaps without text; settled when it ends.

        Raises EngineFailed or LedgerUnavailable."""
        try:
            while self.finish is None:
                text = await self._next()
                scores = self._scores.take(text, all=self.finish is not None and not self._stops.matched)
                if text or scores:
                    yield Piece(text, scores)
        except Exception:
            await self.close("error")
            raise
        await self.close(self._outcome)

    async def close(self, outcome: Outcome) -> None:
        """Free the engine's slot and settle; the first outcome counts, and closing again does nothing."""
        with anyio.CancelScope(shield=True):
            await self._stream.aclose()
            try:
                stream = self._stream
                await self._reservation.settle(
                    outcome, sampled=stream.sampled, cached=stream.cached, waited=stream.waited
                )
            finally:
                self._ended(self)

    def interrupt(self) -> None:
        """End the reply with what it has; its reader is told `length`, since the protocol knows no better word."""
        self._interrupted = True
        self._stream.put(None)

    async def _next(self) -> str:
        """Wait for one token and return the text that may be sent; sets `finish` after the last."""
        if self._interrupted:
            return self._end("length", "server_shutdown")
        token = await anext(self._stream, None)
        if token is None:  # it was interrupted, or closed by another task
            return self._end("length", "server_shutdown")
        if self._counted:
            self._counted -= 1
        else:  # those of one step are written at once
            self._counted = self._stream.ready
            await self._reservation.count(cached=self._stream.cached, tokens=1 + self._counted)
        text = "" if token.finish == "stop" else self._stops.push(self._spell(token))
        if self._stops.matched:
            self.finish = "stop"
        elif token.finish:
            text += self._end(token.finish, self._reservation.full if token.finish == "length" else "stop")
        return text

    def _spell(self, token: Token) -> str:
        text = self._text.push(token.id)
        self._scores.add(token, text)
        return text

    def _end(self, finish: Finish, outcome: Outcome) -> str:
        """Set why the reply ended, and return the text that was held back."""
        self.finish, self._outcome = finish, outcome
        text = self._stops.push(self._text.finish())
        if self._stops.matched:
            self.finish = self._outcome = "stop"
        return text + self._stops.finish()


def opening_of(request_id: str, asked: ReplyRequest, model: Model, prompt: int, wanted: int) -> Opening:
    """The row of a reply of at most `wanted` tokens."""
    skill = asked.skill
    return Opening(
        request_id,
        skill.name,
        model.name,
        prompt,
        wanted,
        Limits(skill.tokens_per_day, skill.tokens_per_month),
        skill.revision,
        asked.key_id,
        asked.idempotency,
    )
