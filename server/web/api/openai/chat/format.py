"""Replies as JSON in the format of chat completions: the chunks of a stream, and the whole.

One addition: a reply that the server ended has the finish_reason `length`, the nearest word of the protocol, and beside
the choices an `outcome`, `budget` or `server_shutdown`; the last chunk then has its usage even if not asked for.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec
from msgspec import Struct
from sse_starlette.event import ServerSentEvent

from server.chat.choices.finished import FinishedChoice, FinishedReply
from server.chat.choices.logprobs import TokenLogprob
from server.chat.choices.prompt import PromptShown, RankedToken
from server.chat.choices.reply_text import Piece
from server.chat.kept.idempotent_replies import Origin
from server.chat.tools.calls import CallPart
from server.engine.sequence import Finish
from server.errors import SecateurError
from server.knowledge.grounding.citations import Citation
from server.metering.ledger.records import Usage
from server.web.api.reply_endpoint import Ended
from server.web.http import problems
from server.web.http.events import event

DONE = "[DONE]"


class Included(Struct, frozen=True, kw_only=True):
    """What a response contains beside the text of its `choices`."""

    choices: int = 1
    logprobs: bool = False
    prompt_logprobs: int | None = None
    token_ids: bool = False
    calls: Literal["tool_calls", "function_call"] = "tool_calls"
    """The name of calls in messages, and of a reply that ended with one."""
    usage: bool = False
    """Whether a stream ends with a chunk of its usage."""
    usage_so_far: bool = False
    """Whether every chunk of a stream has the usage so far, as vLLM sends it."""


class CompletionFormat:
    """Writes one response; all its chunks share id, time and model."""

    def __init__(self, origin: Origin, model: str, included: Included) -> None:
        self._included = included
        self._prompt = 0
        self._sampled: dict[int, int] = {}
        self._ended: set[int] = set()
        self._called: set[int] = set()
        id = f"chatcmpl-{origin.request_id.removeprefix('req_')}"
        self._head = {"id": id, "created": origin.created, "model": model}

    def opening(self, prompt: int) -> Iterator[ServerSentEvent]:
        """The first chunk of each choice, with the role and no text."""
        self._prompt = prompt
        for number in range(self._included.choices):
            yield self._chunk({"delta": {"role": "assistant", "content": "", "refusal": None}}, number)

    def piece(self, piece: Piece) -> Iterator[ServerSentEvent]:
        """A chunk of text, with its tokens' logprobs if wanted; the first may have the prompt's ids."""
        self._sampled[piece.choice] = piece.sampled
        more = {"prompt_token_ids": piece.prompt.ids} if piece.prompt and self._included.token_ids else {}
        deltas: list[dict[str, Any]] = []
        if piece.text or not (piece.calls or piece.citations):
            deltas.append({"content": piece.text})
        if piece.calls:
            self._called.add(piece.choice)
            deltas += map(self._call_delta, piece.calls)
        if piece.citations:
            deltas.append({"annotations": annotations(piece.citations)})
        contents: list[dict[str, Any]] = [{"delta": delta} for delta in deltas]
        contents[0] |= {"logprobs": self._logprobs_of(piece.logprobs), **self._ids_of(piece)}
        if piece.finish:
            self._ended.add(piece.choice)
            contents[-1]["finish_reason"] = self._reason(piece.finish, called=piece.choice in self._called)
        for content in contents:
            yield self._chunk(content, piece.choice, more)
            more = {}

    def ending(self, reply: Ended) -> Iterator[ServerSentEvent]:
        """The last chunks: the finish reason of each choice, the usage if wanted, and [DONE]."""
        more: dict[str, Any] = {}
        if reply.ended_by_server:
            more = {"outcome": reply.ended_by_server, "usage": usage(reply.usage, reply.clamped)}
        if self._included.usage:
            more["usage"] = usage(reply.usage, reply.clamped) if self._included.usage_so_far else None
        for number, finish in enumerate(reply.finishes):
            if number in self._ended:
                continue
            reason = self._reason(finish, called=number in self._called)
            yield self._chunk({"delta": {}, "finish_reason": reason}, number, more)
        if self._included.usage:
            head = {**self._head, "object": "chat.completion.chunk"}
            yield event(encode({**head, "choices": [], "usage": usage(reply.usage, reply.clamped)}))
        yield event(DONE)

    def failure(self, error: SecateurError) -> Iterator[ServerSentEvent]:
        """The error's body; no [DONE] follows."""
        yield event(encode(problems.body(error)))

    def whole(self, piece: Piece, reply: FinishedReply) -> str:
        """The whole response."""
        choices = [
            {
                "index": number,
                "message": self._message(choice),
                "logprobs": self._logprobs_of(choice.logprobs),
                "finish_reason": self._reason(choice.finish, called=bool(choice.calls)),
                **self._ids_of(choice),
            }
            for number, choice in enumerate(reply.choices)
        ]
        more: dict[str, Any] = {"outcome": reply.ended_by_server} if reply.ended_by_server else {}
        if piece.prompt and self._included.token_ids:
            more["prompt_token_ids"] = piece.prompt.ids
        if piece.prompt and self._included.prompt_logprobs is not None:
            more["prompt_logprobs"] = by_id(piece.prompt, self._included.prompt_logprobs)
        head = {**self._head, "object": "chat.completion"}
        return encode({**head, "choices": choices, "usage": usage(reply.usage, reply.clamped), **more})

    def _chunk(self, content: dict[str, Any], number: int, more: dict[str, Any] | None = None) -> ServerSentEvent:
        """One chunk with the `content` of a choice; `more` adds fields beside the choices."""
        choice = {"index": number, "delta": {}, "logprobs": None, "finish_reason": None, **content}
        so_far = usage(Usage(self._prompt, output=sum(self._sampled.values()))) if self._included.usage_so_far else None
        extra = {"usage": so_far} if self._included.usage else {}
        head = {**self._head, "object": "chat.completion.chunk"}
        return event(encode({**head, "choices": [choice], **extra, **(more or {})}))

    def _reason(self, finish: Finish | None, *, called: bool) -> str | None:
        """OpenAI's `finish_reason` of a choice."""
        return self._included.calls if called and finish == "stop" else finish

    def _message(self, choice: FinishedChoice) -> dict[str, Any]:
        """The assistant's message, with the calls that it makes."""
        message: dict[str, Any] = {"role": "assistant", "content": choice.text, "refusal": None}
        if choice.citations:
            message["annotations"] = annotations(choice.citations)
        if not choice.calls:
            return message
        message["content"] = choice.text or None
        if self._included.calls == "function_call":
            return {**message, "function_call": function(choice.calls[0])}
        return {**message, "tool_calls": [tool_call(call) for call in choice.calls]}

    def _call_delta(self, part: CallPart) -> dict[str, Any]:
        """The delta of a part of a call: name and id come first, then the arguments in pieces."""
        if self._included.calls == "function_call":
            return {"function_call": function(part)}
        return {"tool_calls": [{"index": part.number, **tool_call(part)}]}

    def _ids_of(self, part: Piece | FinishedChoice) -> dict[str, Any]:
        """The ids of a choice, if wanted."""
        return {"token_ids": part.ids} if self._included.token_ids else {}

    def _logprobs_of(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """OpenAI's `logprobs` object, or None if not wanted."""
        return {"content": tokens, "refusal": None} if self._included.logprobs else None


def annotations(citations: Sequence[Citation]) -> list[dict[str, Any]]:
    """OpenAI's `annotations`: the passages that support the text between two indices, in code points."""
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "url": one.passage.url,
                "title": one.title,
                "start_index": one.start,
                "end_index": one.end,
            },
        }
        for one in citations
    ]


def tool_call(call: CallPart) -> dict[str, Any]:
    """A call, or a part of one, as OpenAI's `tool_calls` have it."""
    head = {"id": call.id, "type": "function"} if call.name else {}
    return {**head, "function": function(call)}


def function(call: CallPart) -> dict[str, Any]:
    """The function of a call, or of a part of one."""
    return {**({"name": call.name} if call.name else {}), "arguments": call.arguments}


def usage(tokens: Usage, clamped: int | None = None) -> dict[str, Any]:
    """OpenAI's `usage` object, from the ledger's counts; `clamped` is a shorter length than was asked for."""
    details = {} if clamped is None else {"completion_tokens_details": {"x_secateur_max_tokens": clamped}}
    return {
        "prompt_tokens": tokens.prompt,
        "completion_tokens": tokens.output,
        "total_tokens": tokens.prompt + tokens.output,
        "prompt_tokens_details": {"cached_tokens": tokens.cached},
        **details,
    }


def by_id(prompt: PromptShown, count: int) -> list[dict[int, dict[str, Any]] | None]:
    """vLLM's `prompt_logprobs`: by id, each prompt token but the first, and the `count` most likely in its place."""
    return [
        None,
        *({one.id: entry(one) for one in (token.own, *token.top[:count])} for token in prompt.tokens),
    ]


def entry(token: RankedToken) -> dict[str, Any]:
    """A token in vLLM's `prompt_logprobs`."""
    return {"logprob": token.logprob, "rank": token.rank, "decoded_token": token.token}


def encode(value: dict[str, Any]) -> str:
    """Compact JSON."""
    return msgspec.json.encode(value).decode()
