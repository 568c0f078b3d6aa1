"""One metered reply: reserve, generate, count, settle. Every endpoint uses it, so none can forget to meter.

Tokens are reserved before the engine starts; text is sent after the ledger has its tokens; the row is settled, with
every sampled token, before the reader learns that the reply has ended.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from functools import reduce
from typing import NamedTuple

import anyio
from msgspec.structs import replace

from server.chat.choices.live import OUTCOMES, AnyChoice, choices_of, generate
from server.chat.choices.reply_text import Piece
from server.chat.choices.written import WrittenChoice
from server.chat.grounded import Answer, Grounded, Grounder
from server.chat.request import (
    CLAMPED,
    ReplyRequest,
    constrained,
    notes_of,
    prompts_of,
    sampling_of,
    sequences_of,
)
from server.chat.shared_prefix import SharedPrefixes
from server.chat.text_backends import messages_for
from server.engine.sequence import Finish
from server.errors import Overloaded
from server.knowledge.grounding.citations import Citation
from server.metering.ledger.records import Limits, Opening, Outcome, Usage
from server.metering.meter import Meter, Reservation, added
from server.models.rollout import Model, Rollout
from server.skills.key_limits import Allowance, KeyLimits
from server.skills.limits import Entered, RateLimits
from server.skills.skill import Skill

DRAIN_RETRY_SECONDS = 5


class Beginning(NamedTuple):
    """A reply that is about to begin."""

    request_id: str
    request: ReplyRequest
    model: Model
    key: Allowance
    found: Grounded | None
    """What the request is answered from, if its skill has knowledge."""

    @property
    def cite(self) -> Callable[[str], tuple[Citation, ...]] | None:
        """Finds what a whole choice cites; None without knowledge."""
        return self.found.cite if self.found else None


class Replies:
    """Begins replies, tracks the live ones, and ends them when the server shuts down."""

    def __init__(
        self,
        rollout: Rollout,
        meter: Meter,
        rate_limits: RateLimits,
        allowance: Callable[[str], Allowance],
        grounder: Grounder | None = None,
    ) -> None:
        """`allowance` gives the limits of the API key with an id."""
        self.draining = False
        self._rollout = rollout
        self._meter = meter
        self._rate_limits = rate_limits
        self._allowance = allowance
        self._grounder = grounder or Grounder(lambda skill: None)
        self._prefixes = SharedPrefixes()
        self._live: dict[Reply, tuple[Model, str]] = {}
        self._beginning = 0
        self.working = 0  # embeddings under way, which a drain waits for too

    @property
    def idle(self) -> bool:
        """Whether no reply is live or about to begin."""
        return not self._live and not self._beginning and not self.working

    async def writable(self) -> bool:
        """Whether the ledger is writable; no reply begins while it is not."""
        return await self._meter.writable()

    async def begin(self, request_id: str, request: ReplyRequest) -> "Reply":
        """Reserve tokens, open the ledger's row and submit the prompt. The caller must close the reply.

        Raises InvalidRequest, RateLimited, Overloaded, BudgetExceeded, LedgerUnavailable, or Answered for a known
        Idempotency-Key.
        """
        self._refuse_while_draining()
        key = self._allowance(request.key_id)
        entered = await self._rate_limits.enter(request.skill, key)
        try:
            return await self._begin(request_id, request, key, entered)
        except BaseException:
            await self._rate_limits.leave(entered.lease)
            raise

    async def _begin(self, request_id: str, request: ReplyRequest, key: Allowance, entered: Entered) -> "Reply":
        """`begin`, within the limits of requests and concurrent replies."""
        model = self._rollout.use(request.skill.model)  # until the reply ends, even if another is promoted
        self._beginning += 1
        try:
            found = await self._grounder.ground(request, model)
            beginning = Beginning(request_id, found.request if found else request, model, key, found)
            if found is not None and found.answer is not None:
                reply = await self._write(beginning, found.answer, entered.headers)
            else:
                reply = await self._generate(beginning, entered.headers)
            self._live[reply] = (model, entered.lease)
            return reply
        except BaseException:
            self._rollout.release(model)
            raise
        finally:
            self._beginning -= 1

    async def _generate(self, beginning: Beginning, headers: Mapping[str, str]) -> "Reply":
        """Submit the prompt to the engine, within the limit of tokens and the budgets."""
        request, model, key = beginning.request, beginning.model, beginning.key
        spoken, prompts = messages_for(request, model), await prompts_of(request, model)
        shared = 0 if request.prompts else await self._prefixes.length(prompts[0], request.skill, model)
        self._refuse_while_draining()
        sampling = sampling_of(request, max(map(len, prompts)), model, key.limits)
        sampling = await constrained(request, sampling, model)
        opening = opening_of(beginning, sum(map(len, prompts)), sampling.max_tokens)
        token_headers = await self._rate_limits.spend(request.skill, key, opening.prompt + opening.wanted)
        with anyio.CancelScope(shield=True):  # an opened row must reach its owner, to be closed
            reservation = await self._meter.admit(opening)
        try:
            count = len(prompts) * request.choices
            granted = replace(sampling, max_tokens=reservation.granted // count)
            streams = model.engine.submit_together(sequences_of(request, prompts, granted, shared, spoken))
        except BaseException:
            with anyio.CancelScope(shield=True):
                await reservation.settle("rejected")
            raise
        notes = {**headers, **token_headers, **notes_of(request, sampling)}
        choices = choices_of(request, streams, model, sampling)
        return Reply(choices, reservation, notes, self._ended, beginning.cite)

    async def _write(self, beginning: Beginning, answer: Answer, headers: Mapping[str, str]) -> "Reply":
        """A reply whose text is known: its row has no tokens."""
        self._refuse_while_draining()
        with anyio.CancelScope(shield=True):
            reservation = await self._meter.admit(opening_of(beginning, 0, 0))
        choices = [WrittenChoice(index, answer.text, answer.outcome) for index in range(beginning.request.choices)]
        return Reply(choices, reservation, headers, self._ended, beginning.cite)

    def drain(self) -> None:
        """Refuse new replies; live ones continue."""
        self.draining = True

    def interrupt(self) -> None:
        """End every live reply at its next token."""
        for reply in self._live:
            reply.interrupt()

    async def _ended(self, reply: "Reply") -> None:
        """Release the model and the lease that a live reply holds; idempotent."""
        if live := self._live.pop(reply, None):
            self._rollout.release(live[0])
            await self._rate_limits.leave(live[1])

    def _refuse_while_draining(self) -> None:
        if self.draining:
            raise Overloaded("The server is shutting down.", retry_after=DRAIN_RETRY_SECONDS, reason="draining")


class Reply:
    """One reply, of one or more choices, while it is generated; afterwards its `usage` and `finish`."""

    def __init__(
        self,
        choices: Sequence[AnyChoice],
        reservation: Reservation,
        headers: Mapping[str, str],
        ended: "Callable[[Reply], Awaitable[None]]",
        cite: Callable[[str], tuple[Citation, ...]] | None = None,
    ) -> None:
        """`cite` finds what a whole choice cites; None for a skill without knowledge."""
        self.headers = headers
        """Rate-limit headers: what is left of the key's requests and tokens a minute."""
        self._choices = choices
        self._reservation = reservation
        self._ended = ended
        self._cite = cite
        self._said = [""] * len(choices)
        self._outcome: Outcome = "stop"

    @property
    def prompt(self) -> int:
        """The number of prompt tokens, known before any is counted."""
        return self._reservation.prompt

    @property
    def usage(self) -> Usage:
        """The tokens so far, of all choices; each prompt once."""
        return self._reservation.usage

    @property
    def finish(self) -> Finish | None:
        """Why the first choice ended; None while it is generated."""
        return self._choices[0].finish

    @property
    def finishes(self) -> tuple[Finish | None, ...]:
        """Why each choice ended; None while it is generated."""
        return tuple(choice.finish for choice in self._choices)

    @property
    def clamped(self) -> int | None:
        """The `max_tokens` that was granted, if more was asked for."""
        granted = self.headers.get(CLAMPED)
        return None if granted is None else int(granted)

    @property
    def ended_by_server(self) -> Outcome | None:
        """`budget` or `server_shutdown` if the server ended the reply early, or None."""
        return self._outcome if self._outcome in ("budget", "server_shutdown") else None

    async def pieces(self) -> AsyncIterator[Piece]:
        """The choices as they are generated; settled before the last piece of the last choice. It may have no text.

        Raises EngineFailed or LedgerUnavailable; the failure of one choice ends all.
        """
        last: list[Piece] = []
        try:
            async for piece in generate(self._choices, self._reservation):
                if (cited := self._cited(piece)).empty:
                    continue
                if None in self.finishes:
                    yield cited
                else:
                    last.append(cited)
        except Exception:
            await self.close("error")
            raise
        self._outcome = max((choice.outcome for choice in self._choices), key=OUTCOMES.index)
        await self.close(self._outcome)
        for piece in last:
            yield piece

    async def close(self, outcome: Outcome) -> None:
        """Free the engine's slots and settle; the first outcome counts, and closing again does nothing."""
        with anyio.CancelScope(shield=True):
            for choice in self._choices:
                await choice.stream.aclose()
            computed, first = reduce(added, (choice.computed for choice in self._choices)), self._choices[0].stream
            try:
                await self._reservation.settle(outcome, computed=computed, waited=first.waited, reported=first.reported)
            finally:
                await self._ended(self)

    def _cited(self, piece: Piece) -> Piece:
        """The piece; the last of a choice with what the choice cites."""
        if self._cite is None:
            return piece
        self._said[piece.choice] += piece.text
        ended = self._choices[piece.choice].finish is not None
        return piece._replace(citations=self._cite(self._said[piece.choice])) if ended else piece

    def interrupt(self) -> None:
        """End every choice with the text so far."""
        for choice in self._choices:
            choice.interrupt()


def budgets_of(limited: Skill | KeyLimits) -> Limits:
    """The budgets of a skill or a key."""
    return Limits(limited.tokens_per_day, limited.tokens_per_month)


def opening_of(beginning: Beginning, prompt: int, wanted: int) -> Opening:
    """The ledger's row of a reply to `prompt` tokens, of at most `wanted` tokens a choice."""
    request, found, key = beginning.request, beginning.found, beginning.key
    skill, choices = request.skill, request.choices * max(1, len(request.prompts))
    return Opening(
        beginning.request_id,
        skill.name,
        beginning.model.name,
        prompt,
        wanted * choices,
        budgets_of(skill),
        skill.revision,
        request.key_id,
        request.idempotency,
        key_limits=budgets_of(key.limits),
        key_ids=key.ids,
        least=choices if wanted else 0,
        knowledge_tokens=found.tokens if found else 0,
        retrieval=found.seconds if found else None,
        usage_from="pieces" if beginning.model.engine.text and wanted else "ids",
    )
