"""Puts the parts together: which paths each listener answers, and what starts and stops with the server.

The one place that knows every part; it decides nothing that a configuration file does not say.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from anyio import to_thread
from msgspec import Struct
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from server.api import problems, widget
from server.api.admin import Admin
from server.api.chat import Chat
from server.api.frame import Frame
from server.api.health import Health, Metrics
from server.api.models import Models
from server.api.reload import Reload
from server.api.usage import UsageEndpoint
from server.api.visits import Visits
from server.checkpoint.lineage import Lineage
from server.config import Config
from server.conversation.feedback import Feedback
from server.conversation.session import Sessions
from server.conversation.store import Conversations
from server.conversation.talk import Talk
from server.engine.choice import Choice
from server.errors import SecateurError
from server.gate import Gate
from server.metering.ledger import Ledger
from server.metering.meter import Meter
from server.metering.webhooks import Target, Webhook, read_secret
from server.observed import Labels, observe
from server.page import page as demo_page
from server.reply import Replies
from server.rollout import Engine, Model, Rollout
from server.skills import Skills
from server.tokenizer import Tokenizer
from server.traces import Traces, open_traces

ASSETS = Path(__file__).parent / "assets"


class Successors(Protocol):
    """Says which model is to answer next."""

    def next(self) -> Model | None:
        """Another model, loaded, if there is to be one; called in a thread."""

    def began(self) -> None:
        """The first model, or the one that `next` handed out, answers now."""


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
    successors: Successors | None = None


class Apps(NamedTuple):
    """The applications of the listeners, and the replies that all of them share."""

    public: ASGIApp
    admin: ASGIApp
    page: ASGIApp | None
    replies: Replies
    running: AbstractAsyncContextManager[None]
    """Entered before the listeners open, left after they are closed: the engine's thread, the ledger's last write."""


class Closing(NamedTuple):
    """What is closed after the last reply."""

    feedback: Feedback
    gate: Gate
    traces: Traces
    webhook: Webhook | None


def build(parts: Parts) -> Apps:
    """The applications for these parts."""
    registry = CollectorRegistry()
    rollout = Rollout(Model(parts.model, parts.engine, parts.tokenizer, parts.lineage, parts.choices))
    gate = Gate(parts.config.rate_limits)
    feedback = Feedback(parts.config.feedback_file)
    labels = Labels(parts.skills, rollout)
    replies = Replies(
        rollout, Meter(parts.ledger, observe(parts.config, parts.ledger, feedback, labels, registry)), gate
    )
    health = Health(replies, lambda: rollout.current.engine.failure)
    models = Models(parts.skills, rollout)
    talk = Talk(conversations(parts), replies, Reader(rollout), seconds=parts.config.reply_seconds)
    visits = visitors(parts, talk, feedback, gate)
    routes = [*public_routes(parts, replies, models, health), *visits.routes()]
    public = Starlette(routes=routes, exception_handlers=HANDLERS)
    watched = [Route("/metrics", Metrics(registry).scrape), *admin_routes(parts, labels), *probes(health)]
    admin = Starlette(routes=watched, exception_handlers=HANDLERS)
    page = host_page(parts, lambda: rollout.names)
    traces = open_traces(parts.config.traces)
    closing = Closing(feedback, gate, traces, webhook_of(parts, registry))
    return Apps(Frame(public, parts.skills, routes, traces), admin, page, replies, running(parts, rollout, closing))


HANDLERS = {
    SecateurError: problems.on_error,
    HTTPException: problems.on_http_exception,
    Exception: problems.on_bug,
}


class Reader:
    """What conversations ask of the model that answers now."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout

    def count(self, text: str) -> int:
        """Tokens of a text."""
        return self._rollout.current.tokenizer.count(text)

    @property
    def context(self) -> int:
        """Tokens of prompt and reply together."""
        return self._rollout.current.engine.context


def conversations(parts: Parts) -> Conversations:
    """The widget's conversations, none yet."""
    return Conversations(seconds=parts.config.conversation_seconds, most=parts.config.conversations)


def visitors(parts: Parts, talk: Talk, feedback: Feedback, gate: Gate) -> Visits:
    """The widget's endpoints."""
    config = parts.config
    sessions = Sessions(token_seconds=config.token_seconds, resume_seconds=config.conversation_seconds)
    return Visits(parts.skills, sessions, talk, feedback, gate)


def public_routes(parts: Parts, replies: Replies, models: Models, health: Health) -> list[Route]:
    """What the world sees."""
    chat = Chat(parts.skills, replies, max_body=parts.config.max_body)
    return [
        Route("/v1/chat/completions", chat.complete, methods=["POST"]),
        Route("/v1/models", models.list),
        Route("/v1/models/{name}", models.one),
        Route("/v1/skills/{name}", models.skill),
        *widget.routes(ASSETS),
        *probes(health),
    ]


def admin_routes(parts: Parts, labels: Labels) -> list[Route]:
    """What operators look at, and may change while the server runs."""
    rollout = labels.rollout
    dashboard = Admin(parts.ledger, rollout, labels.limits, lambda: rollout.current.name)
    return [
        Route("/admin/usage", UsageEndpoint(parts.ledger).get),
        Route("/admin/reload", Reload(parts.config, parts.skills).reload, methods=["POST"]),
        *dashboard.routes(ASSETS),
    ]


def probes(health: Health) -> list[Route]:
    """Liveness and readiness, the same on both listeners."""
    return [Route("/healthz", health.alive), Route("/readyz", health.ready)]


def host_page(parts: Parts, models: Callable[[], Sequence[str]]) -> ASGIApp | None:
    """The page that embeds the widget of the first skill, where one is asked for; counts the tokens of `models`."""
    if parts.config.page_port is None:
        return None
    skill = parts.skills.names[0]

    def totals() -> dict[str, int]:
        sums, names, counts = parts.ledger.totals(), models(), Counter[str]()
        for (name, model, kind), n in sums.tokens.items():
            counts[kind] += n if name == skill and model in names else 0
        for (name, model, _), n in sums.requests.items():
            counts["requests"] += n if name == skill and model in names else 0
        return counts

    host = "127.0.0.1" if parts.config.host in ("0.0.0.0", "::") else parts.config.host  # no browser can open those
    return demo_page(skill, f"http://{host}:{parts.config.port}/widget.js", totals)


def webhook_of(parts: Parts, registry: CollectorRegistry) -> Webhook | None:
    """Who sends settled replies to the configured address, if there is one."""
    if not parts.config.webhook:
        return None
    secret = parts.config.webhook_secret
    webhook = Webhook(parts.ledger, Target(parts.config.webhook, read_secret(secret) if secret else b""))
    registry.register(webhook)
    return webhook


@asynccontextmanager
async def running(parts: Parts, rollout: Rollout, closing: Closing) -> AsyncIterator[None]:
    """The engine runs and the ledger is open within; both are stopped after, the ledger last."""
    rollout.start()
    if closing.webhook is not None:
        closing.webhook.start()
    following = asyncio.create_task(follow(parts.successors, rollout, parts.config.registry_seconds))
    try:
        yield
    finally:
        following.cancel()
        await asyncio.wait([following])
        rollout.stop()
        if closing.webhook is not None:
            await to_thread.run_sync(closing.webhook.stop)
        parts.ledger.close()
        closing.feedback.close()
        await closing.gate.close()
        await to_thread.run_sync(closing.traces.close)


async def follow(successors: Successors | None, rollout: Rollout, seconds: float) -> None:
    """Ask again and again for another model, and let it answer."""
    if successors is None:
        return
    await to_thread.run_sync(successors.began)
    while True:
        await asyncio.sleep(seconds)
        if model := await to_thread.run_sync(successors.next):
            rollout.replace(model)
            await to_thread.run_sync(successors.began)
