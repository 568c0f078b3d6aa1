"""One metered reply: reserve, generate, count, settle. Every endpoint uses it, so none can forget to meter.

Tokens are reserved before the engine starts; text is sent after the ledger has its tokens; the row is settled, with
every sampled token, before the reader learns that the reply has ended.
"""

from collections.abc import AsyncIterator, Callable, Mapping

import anyio
from msgspec.structs import replace

from server.chat.reply_text import Piece, ReplyText
from server.chat.request import ReplyRequest, cache_salt, notes_of, prompt_of, sampling_of
from server.chat.shared_prefix import SharedPrefixes
from server.engine.sequence import Finish
from server.engine.stream import Stream
from server.errors import Overloaded
from server.metering.ledger.records import Limits, Opening, Outcome, Usage
from server.metering.meter import Meter, Reservation
from server.models.rollout import Model, Rollout
from server.skills.limits import RateLimits
from server.skills.skill import Skill

DRAIN_RETRY_SECONDS = 5


class Replies:
    """Begins replies, tracks the live ones, and ends them when the server shuts down."""

    def __init__(self, rollout: Rollout, meter: Meter, rate_limits: RateLimits) -> None:
        self.draining = False
        self._rollout = rollout
        self._meter = meter
        self._rate_limits = rate_limits
        self._prefixes = SharedPrefixes()
        self._live: dict[Reply, tuple[Model, Skill]] = {}
        self._beginning = 0

    @property
    def idle(self) -> bool:
        """Whether no reply is live or about to begin."""
        return not self._live and not self._beginning

    async def writable(self) -> bool:
        """Whether the ledger is writable; no reply begins while it is not."""
        return await self._meter.writable()

    async def begin(self, request_id: str, request: ReplyRequest) -> "Reply":
        """Reserve tokens, open the ledger's row and submit the prompt. The caller must close the reply.

        Raises InvalidRequest, RateLimited, Overloaded, BudgetExceeded, LedgerUnavailable, or Answered for a known
        Idempotency-Key.
        """
        self._refuse_while_draining()
        headers = await self._rate_limits.enter(request.skill)
        try:
            return await self._begin(request_id, request, headers)
        except BaseException:
            self._rate_limits.leave(request.skill)
            raise

    async def _begin(self, request_id: str, request: ReplyRequest, headers: Mapping[str, str]) -> "Reply":
        """`begin`, within the skill's request limits."""
        skill = request.skill
        model = self._rollout.use(skill.model)  # until the reply ends, even if another is promoted
        self._beginning += 1
        try:
            prompt = await prompt_of(request, model)
            shared = await self._prefixes.length(prompt, skill, model)
            self._refuse_while_draining()
            sampling = sampling_of(request, len(prompt), model)
            token_headers = await self._rate_limits.spend(skill, len(prompt) + sampling.max_tokens)
            opening = opening_of(request_id, request, model, len(prompt), sampling.max_tokens)
            with anyio.CancelScope(shield=True):  # an opened row must reach its owner, to be closed
                reservation = await self._meter.admit(opening)
            try:
                granted = replace(sampling, max_tokens=reservation.granted)
                stream = model.engine.submit(
                    prompt, granted, skill=skill.name, shared_prefix=shared, cache_salt=cache_salt(request)
                )
            except BaseException:
                with anyio.CancelScope(shield=True):
                    await reservation.settle("rejected", sampled=0, cached=0)
                raise
            text = ReplyText(model.tokenizer, request.stop)
            reply = Reply(stream, text, reservation, {**headers, **token_headers, **notes_of(request, sampling)}, self._ended)
            self._live[reply] = (model, skill)
            return reply
        except BaseException:
            self._rollout.release(model)
            raise
        finally:
            self._beginning -= 1

    def drain(self) -> None:
        """Refuse new replies; live ones continue."""
        self.draining = True

    def interrupt(self) -> None:
        """End every live reply at its next token."""
        for reply in self._live:
            reply.interrupt()

    def _ended(self, reply: "Reply") -> None:
        """Release the model and the concurrency limit that a live reply holds; idempotent."""
        if live := self._live.pop(reply, None):
            self._rollout.release(live[0])
            self._rate_limits.leave(live[1])

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise Overloaded("The server is shutting down.", retry_after=DRAIN_RETRY_SECONDS, reason="draining")


class Reply:
    """One reply while it is generated; afterwards its `usage` and `finish`."""

    def __init__(
        self,
        stream: Stream,
        text: ReplyText,
        reservation: Reservation,
        headers: Mapping[str, str],
        ended: "Callable[[Reply], None]",
    ) -> None:
        self.finish: Finish | None = None
        self.headers = headers
        """Rate-limit headers: what is left of the skill's requests and tokens a minute."""
        self._stream = stream
        self._text = text
        self._reservation = reservation
        self._ended = ended
        self._outcome: Outcome = "stop"
        self._interrupted = False
        self._counted = 0  # tokens that the ledger has and the reader has not

    @property
    def prompt(self) -> int:
        """The number of prompt tokens, known before any is counted."""
        return self._stream.prompt

    @property
    def usage(self) -> Usage:
        """The tokens so far."""
        return self._reservation.usage

    @property
    def ended_by_server(self) -> Outcome | None:
        """`budget` or `server_shutdown` if the server ended the reply early, or None."""
        return self._outcome if self._outcome in ("budget", "server_shutdown") else None

    async def pieces(self) -> AsyncIterator[Piece]:
        """The reply as it is generated; settled when the iterator ends. The last piece may have no text.

        Raises EngineFailed or LedgerUnavailable.
        """
        try:
            while self.finish is None:
                text = await self._next()
                piece = self._text.piece(text, last=self.finish is not None)
                if piece.text or piece.logprobs:
                    yield piece
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
        """End the reply with the text so far; `finish` is then `length`, the nearest word of OpenAI's protocol."""
        self._interrupted = True
        self._stream.put(None)

    async def _next(self) -> str:
        """Wait for a token and return the text that can be sent; sets `finish` after the last token."""
        if self._interrupted:
            return self._end("length", "server_shutdown")
        token = await anext(self._stream, None)
        if token is None:  # interrupted, or closed by another task
            return self._end("length", "server_shutdown")
        if self._counted:
            self._counted -= 1
        else:  # all tokens of an engine step are written at once
            self._counted = self._stream.ready
            await self._reservation.count(cached=self._stream.cached, tokens=1 + self._counted)
        text = "" if token.finish == "stop" else self._text.push(token)
        if self._text.stopped:
            self.finish = "stop"
        elif token.finish:
            text += self._end(token.finish, self._reservation.full if token.finish == "length" else "stop")
        return text

    def _end(self, finish: Finish, outcome: Outcome) -> str:
        """Set why the reply ended, and return the text that was held back."""
        self.finish, self._outcome = finish, outcome
        text = self._text.finish()
        if self._text.stopped:
            self.finish = self._outcome = "stop"
        return text


def opening_of(request_id: str, request: ReplyRequest, model: Model, prompt: int, wanted: int) -> Opening:
    """The ledger's row of a reply to `prompt` tokens, of at most `wanted` tokens."""
    skill = request.skill
    return Opening(
        request_id,
        skill.name,
        model.name,
        prompt,
        wanted,
        Limits(skill.tokens_per_day, skill.tokens_per_month),
        skill.revision,
        request.key_id,
        request.idempotency,
    )
