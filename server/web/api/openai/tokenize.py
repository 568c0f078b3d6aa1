"""POST /tokenize and /detokenize, in the forms of vLLM and of llama-server; they generate nothing and are not metered.

The conversation of `messages` is counted without the skill's own prompt and examples, which stay the skill's.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from msgspec import Meta, Struct
from msgspec.structs import replace
from starlette.requests import Request
from starlette.responses import Response

from server.chat.messages import ROLES, ChatMessage
from server.chat.request import LONG_TEXT
from server.chat.worker import Worker
from server.errors import InvalidRequest
from server.models.rollout import Model, Rollout
from server.skills.catalogue import Caller, Skills
from server.skills.skill import Skill
from server.skills.turns import conversation
from server.web.api.reply_endpoint import check_speaks
from server.web.http.json_body import convert, decode
from server.web.http.requests import RequestState, bearer, read_body
from server.web.http.responses import json_response

Fields = TypeVar("Fields")
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]


class TokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """A text as `prompt` (vLLM) or `content` (llama-server), or a conversation as `messages` (vLLM)."""

    model: str | None = None
    """A skill's name or alias; may be left out if the key's skills share one model."""
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1)] | None = None
    content: str | None = None
    add_special_tokens: bool | None = None
    """vLLM's: add the tokens around every text; by default true for `prompt`, and never for `messages`."""
    add_generation_prompt: bool = True
    return_token_strs: bool = False
    add_special: bool = False
    """llama-server's name for `add_special_tokens`."""
    parse_special: bool = False
    """Read special tokens that the text spells; here by default false, since this server never does."""
    with_pieces: bool = False


class DetokenizeRequest(Struct, frozen=True, forbid_unknown_fields=True):
    """Token ids."""

    tokens: list[TokenId]
    model: str | None = None


class TokenizeEndpoints:
    """The endpoints for these skills' models; `max_body` is in bytes."""

    def __init__(self, skills: Skills, rollout: Rollout, *, max_body: int) -> None:
        self._skills = skills
        self._rollout = rollout
        self._max_body = max_body
        self._worker = Worker("tokenisation")

    async def tokenize(self, request: Request) -> Response:
        """The ids of a text or conversation, in the form of the API whose field the request has."""
        caller, fields = await self._read(request)
        wanted = read(fields, TokenizeRequest)
        if sum(value is not None for value in (wanted.prompt, wanted.messages, wanted.content)) != 1:
            raise InvalidRequest("Give one of `prompt`, `messages` and `content`.", param="prompt")
        if wanted.messages is not None and wanted.add_special_tokens:
            raise InvalidRequest("The chat template writes them: leave it out.", param="add_special_tokens")
        skill = self._skill(request, wanted.model, caller)
        return json_response(await self._run(request, answer, wanted, skill, self._rollout.of(skill.model)))

    async def detokenize(self, request: Request) -> Response:
        """The text of ids, under the names that vLLM and llama-server give it."""
        caller, fields = await self._read(request)
        wanted = read(fields, DetokenizeRequest)
        tokenizer = self._rollout.of(self._skill(request, wanted.model, caller).model).tokenizer
        if unknown := next((id for id in wanted.tokens if id >= tokenizer.vocabulary), None):
            raise InvalidRequest(f"{unknown} is no token: the vocabulary has {tokenizer.vocabulary}.", param="tokens")
        text = await self._run(request, tokenizer.detokenise, wanted.tokens)
        return json_response({"prompt": text, "content": text})

    async def _read(self, request: Request) -> tuple[Caller, Any]:
        """The caller, and the body's fields without nulls."""
        caller = self._skills.recognise(bearer(request.headers))
        body = await read_body(request, self._max_body)
        fields = await self._worker.run(decode, body) if len(body) > LONG_TEXT else decode(body)
        if isinstance(fields, dict):
            fields = {name: value for name, value in fields.items() if value is not None}
        return caller, fields

    async def _run(self, request: Request, function: Callable[..., Fields], *arguments: object) -> Fields:
        """The function's result, computed in a thread if the body is long."""
        if int(request.headers.get("content-length", LONG_TEXT)) < LONG_TEXT:
            return function(*arguments)
        return await self._worker.run(function, *arguments)

    def _skill(self, request: Request, name: str | None, caller: Caller) -> Skill:
        """The skill of that name, or any of the caller's if they share one model; raises InvalidRequest."""
        if name is None:
            skills = [grant.skill for grant in self._skills.usable(caller)]
            if len(self._rollout.references(skill.model for skill in skills)) > 1:
                names = ", ".join(skill.name for skill in skills)
                raise InvalidRequest(f"Name a `model`: this API key opens {names}.", param="model")
            skill = skills[0]
        else:
            RequestState.of(request.scope).name_skill(self._skills.get(name))
            skill = self._skills.authorise(name, caller).skill
        state = RequestState.of(request.scope)
        state.key = caller.key_id
        state.name_skill(skill)
        check_speaks(skill)
        return skill


def read(fields: Any, kind: type[Fields]) -> Fields:
    """Decoded fields as a struct; raises InvalidRequest naming the field."""
    return convert(fields, kind, {"role": ROLES})


def answer(wanted: TokenizeRequest, skill: Skill, model: Model) -> dict[str, Any]:
    """The response to a tokenisation."""
    if wanted.content is not None:
        ids = model.tokenizer.tokenise(wanted.content, add_special=wanted.add_special, recognise=wanted.parse_special)
        return {"tokens": [piece(id, model) for id in ids] if wanted.with_pieces else ids}
    ids = ids_of(wanted, skill, model)
    body: dict[str, Any] = {"count": len(ids), "max_model_len": model.engine.context, "tokens": ids, "token_strs": None}
    if wanted.return_token_strs:
        body["token_strs"] = [model.tokenizer.entry(id) for id in ids]
    return body


def ids_of(wanted: TokenizeRequest, skill: Skill, model: Model) -> list[int]:
    """The ids of a prompt, or of a conversation without what the skill adds to it."""
    if wanted.messages is None:
        add_special = wanted.add_special_tokens is not False
        return model.tokenizer.tokenise(wanted.prompt or "", add_special=add_special, recognise=wanted.parse_special)
    turns = [message.plain(f"messages[{index}]") for index, message in enumerate(wanted.messages)]
    bare = replace(skill, system="", examples=())
    return model.tokenizer.chat(conversation(bare, turns), reply=wanted.add_generation_prompt)


def piece(id: int, model: Model) -> dict[str, Any]:
    """An id with its text, or its bytes where they are a part of a character, as llama-server writes it."""
    text, raw = model.tokenizer.spelling(id)
    try:
        return {"id": id, "piece": text if raw is None else raw.decode()}
    except UnicodeDecodeError:
        return {"id": id, "piece": list(raw or b"")}
