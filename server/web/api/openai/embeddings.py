"""POST /v1/embeddings: the vectors of texts or token ids, by the encoder of a skill."""

import base64
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
import numpy
from anyio import to_thread
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import Response

from server.chat.embeddings import MOST_INPUTS, Embedded, EmbeddingRequest, Embeddings
from server.chat.kept.idempotency import idempotency_digest
from server.errors import InvalidRequest
from server.models.encoders import Encoders, NamedEncoder
from server.skills.catalogue import Skills
from server.skills.skill import Skill
from server.web.api.openai.fields import Tolerant, fields_of, sort_fields
from server.web.http.json_body import convert, decode
from server.web.http.requests import RequestState, bearer, read_body

LONG_BODY = 1 << 16  # bytes; longer bodies are parsed in a thread, so that other streams go on
TokenId = Annotated[int, Meta(ge=0, lt=1 << 31)]
Several = Meta(min_length=1, max_length=MOST_INPUTS)
WHOLE = -1
"""vLLM's `truncate_prompt_tokens` for as many tokens as the encoder reads."""


class EmbeddingsBody(Tolerant, frozen=True, kw_only=True):
    """A request for the vectors of one or several inputs."""

    model: str
    input: Any
    """A text, a list of texts, token ids, or a list of lists of them."""
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Meta(ge=1)] | None = None
    """Only the first numbers of each vector, normalised anew."""
    user: str | None = None
    """Neither stored nor logged."""
    truncate: bool = False
    """Cut inputs that are too long, instead of refusing them."""
    truncate_prompt_tokens: Annotated[int, Meta(ge=-1)] | None = None
    """vLLM's name for it: the most tokens of each input, or -1 for as many as the encoder reads."""
    input_type: Literal["query", "document", "passage"] | None = None
    """What the texts are, for encoders that want a prefix before each."""

    @property
    def inputs(self) -> tuple[str | tuple[int, ...], ...]:
        """The inputs; raises InvalidRequest."""
        one: str | list[int]
        match self.input:
            case str():
                one = self.input
            case [int(), *_]:
                one = convert(self.input, list[TokenId], place="input")
            case [str(), *_]:
                return tuple(convert(self.input, Annotated[list[str], Several], place="input"))  # type: ignore[arg-type]
            case [list(), *_]:
                rows: Any = convert(self.input, Annotated[list[list[TokenId]], Several], place="input")  # type: ignore[arg-type]
                return tuple(map(tuple, rows))
            case _:
                raise InvalidRequest("`input` must be a text, texts, token ids, or lists of them.", param="input")
        return (one if isinstance(one, str) else tuple(one),)

    def ask(self, skill: Skill, named: NamedEncoder) -> EmbeddingRequest:
        """The request to embed for `skill`."""
        inputs, prefix = self.inputs, prefix_of(self.input_type, named)
        most = self.truncate_prompt_tokens
        return EmbeddingRequest(
            skill,
            tuple(prefix + one if isinstance(one, str) and one else one for one in inputs) if prefix else inputs,
            truncate=self.truncate or most is not None,
            most=None if most in (None, WHOLE) else most,
        )


class EmbeddingsEndpoint:
    """The endpoint for these skills; `max_body` is in bytes."""

    def __init__(self, skills: Skills, embeddings: Embeddings, encoders: Encoders, *, max_body: int) -> None:
        self._skills = skills
        self._embeddings = embeddings
        self._encoders = encoders
        self._max_body = max_body

    async def embed(self, request: Request) -> Response:
        """The vectors of all inputs, as numbers or as base64 of little-endian float32."""
        caller = self._skills.recognise(bearer(request.headers))  # before the body is read
        body = await read_body(request, self._max_body)
        wanted = await to_thread.run_sync(parse, body) if len(body) > LONG_BODY else parse(body)
        state = RequestState.of(request.scope)
        state.name_skill(self._skills.get(wanted.model))
        grant = self._skills.authorise(wanted.model, caller)
        state.key = grant.key_id
        wanted.ignored_for(grant.skill)
        named = self._encoders.of(grant.skill)
        if named is None:
            raise InvalidRequest(
                f"The skill {grant.skill.name!r} does not embed: its file names no `encoder`.", param="model"
            )
        check_dimensions(wanted.dimensions, named)
        key = idempotency_digest(request.headers.get("idempotency-key"), grant.skill.name, grant.key_id)
        asked = msgspec.structs.replace(wanted.ask(grant.skill, named), key_id=grant.key_id, idempotency=key)
        found = await self._embeddings.embed(state.request_id, asked, named)
        state.input_tokens, state.output_tokens = found.tokens, 0
        content = await to_thread.run_sync(encoded, found, wanted)
        return Response(content, headers=dict(found.headers), media_type="application/json")


def parse(body: bytes) -> EmbeddingsBody:
    """The request in `body`; raises InvalidRequest naming the field."""
    fields = decode(body)
    if not isinstance(fields, dict):
        raise InvalidRequest("Expected `object`.")
    found = sort_fields(fields, fields_of(EmbeddingsBody))
    allowed: Mapping[str, str] = {"encoding_format": "float or base64", "input_type": "query, document or passage"}
    return convert({**found.read, "ignored": found.ignored, "unknown": found.unknown}, EmbeddingsBody, allowed)


def prefix_of(kind: str | None, named: NamedEncoder) -> str:
    """What the encoder expects before texts of this kind."""
    if kind is None:
        return ""
    recipe = named.encoder.recipe
    return recipe.query_prompt if kind == "query" else recipe.document_prompt


def check_dimensions(wanted: int | None, named: NamedEncoder) -> None:
    """Raise InvalidRequest for more dimensions than the encoder's vectors have."""
    if wanted is not None and wanted > named.encoder.dimension:
        most = named.encoder.dimension
        raise InvalidRequest(f"`dimensions` is {wanted}; this encoder's vectors have {most}.", param="dimensions")


def encoded(found: Embedded, wanted: EmbeddingsBody) -> bytes:
    """The response as JSON."""
    vectors = [shortened(vector, wanted.dimensions) for vector in found.vectors]
    shown: Sequence[Any] = [vector.tolist() for vector in vectors]
    if wanted.encoding_format == "base64":
        shown = [base64.b64encode(vector.astype("<f4").tobytes()).decode() for vector in vectors]
    data = [{"object": "embedding", "index": index, "embedding": one} for index, one in enumerate(shown)]
    usage = {"prompt_tokens": found.tokens, "total_tokens": found.tokens}
    return msgspec.json.encode({"object": "list", "data": data, "model": wanted.model, "usage": usage})


def shortened(vector: Any, dimensions: int | None) -> Any:
    """The first numbers of a vector, normalised anew; the vector itself if no number is given."""
    if dimensions is None or dimensions == len(vector):
        return vector
    cut = vector[:dimensions]
    length = float(numpy.linalg.norm(cut))
    return cut / length if length else cut
