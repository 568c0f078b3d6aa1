"""Models that run on other machines: a TOML file that a skill, or the server, names as its `model`.

The artifact stays here for its tokenizer, chat template, record and signature; the backends load its export.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from server.engine.choice import Choice
from server.engine.remote.backends import Backends, tls_of
from server.engine.remote.chat_protocol import ChatProtocol, Extra
from server.engine.remote.http_stream import Target
from server.engine.remote.remote_engine import RemoteEngine, Sizes
from server.errors import ConfigError
from server.storage.addresses import is_address, is_loopback
from server.storage.toml import kept_elsewhere, read

Seconds = Annotated[float, Meta(gt=0, le=3600)]
Positive = Annotated[int, Meta(ge=1)]


class RemoteModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model on other servers: vLLM's, by token ids, or any with OpenAI's chat completions, by text."""

    engine: Literal["remote"]
    """Says that this file describes a remote engine."""
    protocol: Literal["tokens", "chat"] = "tokens"
    """`tokens` is vLLM's token protocol (`vllm serve MODEL --enable-scale-out`); `chat` OpenAI's chat completions.

    With `chat` the backends render and count: the ledger marks such rows in `usage_from`.
    """
    takes: tuple[Extra, ...] = ()
    """With `chat`: fields beyond OpenAI's common ones that the backends take; a request that uses another is refused.

    `top_k`, `min_p`, `seed`, `min_tokens`, `repetition_penalty` (vLLM) or `repeat_penalty` (llama.cpp) are sent with
    each request, so that no default of the backend applies. `max_completion_tokens` is sent instead of `max_tokens`.
    `continuous_usage_stats` (vLLM) asks for usage with each piece, so that replies cut here are counted exactly.
    """
    artifact: Annotated[str, Meta(min_length=1)]
    """The artifact's directory, such as the one `secateur export --to hf` writes; the backends serve the same files."""
    backends: Annotated[tuple[str, ...], Meta(min_length=1, max_length=64)]
    """The backends' addresses, as https://gpu-1.example:8000; http:// beyond this machine needs `plain_http`."""
    served_as: Annotated[str, Meta(min_length=1)]
    """The backends' name of the model, vLLM's --served-model-name."""
    context: Positive = 2048
    """The longest sequence in tokens; the backends must allow as much (--max-model-len)."""
    key: str = ""
    """`file:PATH` or `env:NAME`, which hold the backends' API key; empty sends none."""
    ca: Path | None = None
    """The file of certificate authorities that the backends are checked by; by default the system's."""
    health: Annotated[str, Meta(pattern="^/")] = "/health"
    """The path that answers 200 while a backend is well; /v1/models where there is no /health."""
    plain_http: bool = False
    """Allows http:// to other machines: prompts and replies then cross the network readable."""
    replies: Annotated[int, Meta(ge=1, le=65536)] = 64
    """Replies generated at once, over all backends."""
    max_waiting: Annotated[int, Meta(ge=0)] = 64
    """Requests of one skill that may wait for one of them; further ones are answered 503."""
    share_prefixes: bool = False
    """Whether callers of a skill share the backends' prefix cache; then a caller can probe by time what others sent."""
    connect_seconds: Seconds = 5.0
    """Seconds to wait for a connection."""
    first_token_seconds: Seconds = 60.0
    """Seconds to wait for a reply's first token, after which another backend is tried."""
    token_seconds: Seconds = 30.0
    """Seconds to wait for each further token, after which the reply ends with an error."""


def is_remote(reference: str) -> bool:
    """Whether a model's reference names a file of a remote model."""
    return reference.endswith(".toml")


def read_remote(path: Path) -> RemoteModel:
    """The remote model that a file describes; raises ConfigError."""
    model = read(path, RemoteModel)
    for index, url in enumerate(model.backends):
        place = f"at `$.backends[{index}]`"
        if not is_address(url):
            raise ConfigError(f"{path}: a backend is an address such as https://gpu-1.example:8000 - {place}")
        if url.startswith("http:") and not is_loopback(urlsplit(url).hostname or "") and not model.plain_http:
            raise ConfigError(
                f"{path}: prompts would cross the network readable: use https://, or set plain_http = true - {place}"
            )
    if model.takes and model.protocol == "tokens":
        raise ConfigError(f"{path}: the token protocol takes every option: leave `takes` out - at `$.takes`")
    if len(set(model.backends)) < len(model.backends):
        raise ConfigError(f"{path}: a backend is named twice - at `$.backends`")
    return model


def remote_engine(model: RemoteModel, vocabulary: int) -> tuple[RemoteEngine, Sequence[Choice]]:
    """The engine, not started yet, and what was decided; raises ConfigError for an unreadable key or authority."""
    try:
        key = kept_elsewhere(model.key) if model.key else ""
        tls = tls_of(str(model.ca) if model.ca else None)
    except ConfigError as error:
        raise ConfigError(f"{error} - at `$.key`") from None
    except OSError as error:
        raise ConfigError(f"{model.ca} holds no certificates: {error} - at `$.ca`") from None
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    targets = [
        Target(url, headers, tls if url.startswith("https:") else None, model.connect_seconds, model.health)
        for url in model.backends
    ]
    sizes = Sizes(
        model=model.served_as,
        context=model.context,
        vocabulary=vocabulary,
        replies=model.replies,
        max_waiting=model.max_waiting,
        first_token_seconds=model.first_token_seconds,
        token_seconds=model.token_seconds,
        share_prefixes=model.share_prefixes,
    )
    where = f"{len(targets)} backends serve it as {model.served_as}"
    if model.protocol == "chat":
        choices = (
            Choice("engine", "remote, by text", where),
            Choice("usage", "as the backends report it", "`protocol` is chat: replies come without token ids"),
            Choice("structured output", "off", "a chat backend is not given grammars"),
        )
        return RemoteEngine(Backends(targets), sizes, partial(ChatProtocol, extras=model.takes)), choices
    prefixes = "all callers of a skill" if model.share_prefixes else "each caller alone"
    choices = (
        Choice("engine", "remote, by token ids", where),
        Choice("prefix cache", prefixes, "`share_prefixes` of the model's file"),
        Choice("structured output", "on", "grammars are handed on, and each id is checked here"),
    )
    return RemoteEngine(Backends(targets), sizes), choices
