"""Puts the parts together: which paths each listener answers, and what starts and stops with the server.

The one place that knows every part; it decides nothing that a configuration file does not say.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from msgspec import Struct
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from server import reply
from server.api import problems, widget
from server.api.chat import Chat
from server.api.frame import Frame
from server.api.health import Health, Metrics
from server.api.models import Models
from server.checkpoint.lineage import Lineage
from server.config import Config
from server.engine.choice import Choice
from server.errors import SecateurError
from server.metering.ledger import Ledger
from server.metering.meter import Meter
from server.metering.metrics import EngineCollector, EngineState, Latency, LedgerCollector
from server.page import page
from server.reply import Replies
from server.skills import Skills
from server.tokenizer import Tokenizer

ASSETS = Path(__file__).parent / "assets"


class Engine(reply.Engine, EngineState, Protocol):
    """What is used of the engine, by replies, metrics and probes."""

    def start(self) -> None:
        """Start the thread."""

    def stop(self) -> None:
        """End the thread and every stream."""

    @property
    def failure(self) -> str | None:
        """Why the engine does not run, or None while it does."""


class Parts(Struct, frozen=True):
    """Everything that is made before the server can be built; `model` is the artifact's name in labels."""

    config: Config
    skills: Skills
    engine: Engine
    tokenizer: Tokenizer
    ledger: Ledger
    model: str
    lineage: Lineage
    choices: Sequence[Choice] = ()


class Apps(NamedTuple):
    """The applications of the listeners, and the replies that all of them share."""

    public: ASGIApp
    admin: ASGIApp
    page: ASGIApp | None
    replies: Replies
    running: AbstractAsyncContextManager[None]
    """Entered before the listeners open, left after they are closed: the engine's thread, the ledger's last write."""


def build(parts: Parts) -> Apps:
    """The applications for these parts."""
    registry = CollectorRegistry()
    registry.register(LedgerCollector(parts.ledger, parts.skills.names, parts.model))
    registry.register(EngineCollector(parts.engine, model_labels(parts), parts.choices))
    meter = Meter(parts.ledger, Latency(registry), model=parts.model)
    replies = Replies(parts.engine, parts.tokenizer, meter)
    health = Health(replies, lambda: parts.engine.failure)
    public = Starlette(routes=public_routes(parts, replies, health), exception_handlers=HANDLERS)
    admin = Starlette(routes=[Route("/metrics", Metrics(registry).scrape), *probes(health)])
    return Apps(Frame(public, parts.skills), admin, host_page(parts), replies, running(parts))


HANDLERS = {
    SecateurError: problems.on_error,
    HTTPException: problems.on_http_exception,
    Exception: problems.on_bug,
}


def public_routes(parts: Parts, replies: Replies, health: Health) -> list[Route]:
    """What the world sees."""
    chat = Chat(parts.skills, replies, max_body=parts.config.max_body)
    models = Models(parts.skills, parts.model, parts.lineage, parts.choices)
    return [
        Route("/v1/chat/completions", chat.complete, methods=["POST"]),
        Route("/v1/models", models.list),
        Route("/v1/models/{name}", models.one),
        Route("/v1/skills/{name}", models.skill),
        *widget.routes(ASSETS),
        *probes(health),
    ]


def probes(health: Health) -> list[Route]:
    """Liveness and readiness, the same on both listeners."""
    return [Route("/healthz", health.alive), Route("/readyz", health.ready)]


def host_page(parts: Parts) -> ASGIApp | None:
    """The page that embeds the widget of the first skill, where one is asked for."""
    if parts.config.page_port is None:
        return None
    skill = parts.skills.names[0]

    def totals() -> dict[str, int]:
        sums = parts.ledger.totals()
        tokens = {kind: n for (name, model, kind), n in sums.tokens.items() if (name, model) == (skill, parts.model)}
        requests = sum(n for (name, model, _), n in sums.requests.items() if (name, model) == (skill, parts.model))
        return {**tokens, "requests": requests}

    host = "127.0.0.1" if parts.config.host in ("0.0.0.0", "::") else parts.config.host  # no browser can open those
    return page(skill, f"http://{host}:{parts.config.port}/widget.js", totals)


def model_labels(parts: Parts) -> dict[str, str]:
    """The labels of secateur_model_info."""
    lineage = parts.lineage
    return {
        "model": parts.model,
        "base": lineage.base.name,
        "technique": "+".join(step.technique for step in lineage.steps) or "none",
        "digest": lineage.files.get("model.safetensors", ""),
    }


@asynccontextmanager
async def running(parts: Parts) -> AsyncIterator[None]:
    """The engine runs and the ledger is open within; both are stopped after, the ledger last."""
    parts.engine.start()
    try:
        yield
    finally:
        parts.engine.stop()
        parts.ledger.close()
