"""Replies as JSON in the format of completions: the chunks of a stream, and the whole; with vLLM's additions.

As in chat completions, a reply that the server ended has an `outcome` beside the choices.
"""

import codecs
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct
from sse_starlette.event import ServerSentEvent

from server.chat.choices.finished import FinishedReply
from server.chat.choices.logprobs import TokenLogprob, TopLogprob
from server.chat.choices.prompt import PromptShown, RankedToken
from server.chat.choices.reply_text import Piece
from server.chat.kept.idempotent_replies import Origin
from server.chat.request import RawPrompt
from server.errors import SecateurError
from server.metering.ledger.records import Usage
from server.web.api.openai.chat.format import DONE, by_id, encode, usage
from server.web.api.reply_endpoint import Ended
from server.web.http import problems
from server.web.http.events import event

DETAILS = "prompt_tokens_details"


class Included(Struct, frozen=True):
    """What a response contains beside the text."""

    logprobs: int | None
    prompt_logprobs: int | None
    token_ids: bool
    echo: bool
    usage: bool
    """Whether a stream ends with a chunk of its usage."""
    usage_so_far: bool
    """Whether every chunk of a stream has the usage so far, as vLLM sends it."""


class CompletionsFormat:
    """Writes one response to `prompts`, with `n` choices of each; all its chunks share id, time and model."""

    def __init__(self, origin: Origin, model: str, prompts: Sequence[RawPrompt], n: int, included: Included) -> None:
        self._prompts = prompts
        self._n = n
        self._included = included
        self._places: dict[int, TextPlaces] = {}
        self._prompt = 0
        self._sampled: dict[int, int] = {}
        self._ended: set[int] = set()
        id = f"cmpl-{origin.request_id.removeprefix('req_')}"
        self._head = {"id": id, "object": "text_completion", "created": origin.created, "model": model}

    def opening(self, prompt: int) -> Iterator[ServerSentEvent]:
        """No events: a stream begins with text."""
        self._prompt = prompt
        yield from ()

    def piece(self, piece: Piece) -> Iterator[ServerSentEvent]:
        """A chunk of text; the first of a choice has its prompt too, if wanted."""
        self._sampled[piece.choice] = piece.sampled
        so_far = {"usage": counts(Usage(self._prompt, output=sum(self._sampled.values())))}
        if piece.finish:
            self._ended.add(piece.choice)
        yield self._chunk([self._choice(piece, piece.finish)], so_far if self._included.usage_so_far else {})

    def ending(self, reply: Ended) -> Iterator[ServerSentEvent]:
        """The last chunks: the finish reason of each choice, the usage if wanted, and [DONE]."""
        more: dict[str, Any] = {}
        if reply.ended_by_server or self._included.usage_so_far:
            more = {"usage": counts(reply.usage, reply.clamped)}
        if reply.ended_by_server:
            more = {"outcome": reply.ended_by_server, "usage": counts(reply.usage, reply.clamped)}
        for index, finish in enumerate(reply.finishes):
            if index in self._ended:
                continue
            yield self._chunk([self._choice(Piece("", choice=index), finish)], more)
        if self._included.usage:
            yield self._chunk([], {"usage": counts(reply.usage, reply.clamped)})
        yield event(DONE)

    def failure(self, error: SecateurError) -> Iterator[ServerSentEvent]:
        """The error's body; no [DONE] follows."""
        yield event(encode(problems.body(error)))

    def whole(self, piece: Piece, reply: FinishedReply) -> str:
        """The whole response, with all choices."""
        choices = [
            self._choice(choice.piece._replace(choice=index), choice.finish)
            for index, choice in enumerate(reply.choices)
        ]
        more = {"outcome": reply.ended_by_server} if reply.ended_by_server else {}
        return encode({**self._head, "choices": choices, "usage": counts(reply.usage, reply.clamped), **more})

    def _chunk(self, choices: list[dict[str, Any]], more: dict[str, Any] | None = None) -> ServerSentEvent:
        """One chunk; `more` adds fields beside the choices."""
        extra = {"usage": None} if self._included.usage else {}
        return event(encode({**self._head, "choices": choices, **extra, **(more or {})}))

    def _choice(self, piece: Piece, finish: str | None) -> dict[str, Any]:
        """A piece of a choice, or a whole one, as a JSON object."""
        included, prompt = self._included, piece.prompt
        echoed = prompt if included.echo else None
        choice: dict[str, Any] = {
            "index": piece.choice,
            "text": (self._text_of(piece.choice, echoed) if echoed else "") + piece.text,
            "logprobs": None if included.logprobs is None else self._logprobs(piece, echoed, included.logprobs),
            "finish_reason": finish,
        }
        if prompt and included.prompt_logprobs is not None:
            choice["prompt_logprobs"] = by_id(prompt, included.prompt_logprobs)
        if included.token_ids:
            choice |= {"token_ids": piece.ids, "prompt_token_ids": prompt.ids if prompt else None}
        return choice

    def _text_of(self, index: int, prompt: PromptShown) -> str:
        """The prompt of a choice as it was sent, or the text of its ids."""
        sent = self._prompts[index // self._n]
        return sent if isinstance(sent, str) else prompt.text

    def _logprobs(self, piece: Piece, echoed: PromptShown | None, count: int) -> dict[str, list[Any]]:
        """OpenAI's `logprobs` object of completions; the first token of a prompt has none."""
        places = self._places.setdefault(piece.choice, TextPlaces())
        found: dict[str, list[Any]] = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

        def add(token: str, logprob: float | None, top: dict[str, float] | None, place: int) -> None:
            for name, value in zip(found, (token, logprob, top, place), strict=True):
                found[name].append(value)

        if echoed:
            add(label(echoed.first), None, None, places.add(echoed.first, shown=True))
            for token in echoed.tokens:
                alternatives = alternatives_of(token.own, token.top[:count])
                add(label(token.own), token.own.logprob, alternatives, places.add(token.own, shown=True))
        for sampled in piece.logprobs:
            alternatives = alternatives_of(sampled, sampled.top_logprobs)
            add(label(sampled), sampled.logprob, alternatives, places.add(sampled, shown=False))
        return found


def counts(tokens: Usage, clamped: int | None = None) -> dict[str, Any]:
    """OpenAI's `usage` object; of completions it has the details of the prompt only if tokens were cached."""
    found = usage(tokens, clamped)
    return found if tokens.cached else {name: value for name, value in found.items() if name != DETAILS}


class TextPlaces:
    """The place of each token in a choice's text, in characters."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._end = 0

    def add(self, token: RankedToken | TokenLogprob, *, shown: bool) -> int:
        """The place where `token` begins; special tokens have text only where they are `shown`."""
        place = self._end
        if token.bytes is not None:
            self._end += len(self._decoder.decode(bytes(token.bytes)))
        elif shown:
            self._end += len(token.token)
        return place


def label(token: RankedToken | TopLogprob) -> str:
    """A token's text; of a part of a character OpenAI writes the bytes, which tell such tokens apart."""
    if token.bytes is None or "\ufffd" not in token.token:
        return token.token
    return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)


def alternatives_of(own: RankedToken | TopLogprob, top: Sequence[RankedToken | TopLogprob]) -> dict[str, float]:
    """The log probabilities of the most likely tokens, and of the token itself if it is not among them."""
    found = {label(token): token.logprob for token in top}
    return {**found, label(own): own.logprob}
