"""Puts the parts together: which paths each listener answers, and what starts and stops with the server.

The one place that knows every part; it decides nothing that a configuration file does not say.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from anyio import to_thread
from msgspec import Struct
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from server.chat.conversation.feedback import Feedback
from server.chat.conversation.session import Sessions
from server.chat.conversation.store import Conversations
from server.chat.conversation.talk import Talk
from server.chat.reply import Replies
from server.config import Config
from server.errors import SecateurError
from server.metering.ledger.ledger import Ledger
from server.metering.meter import Meter
from server.metering.refusals import Refusals
from server.metering.webhooks import Target, Webhook, read_secret
from server.models.loading import Loader
from server.models.reload import Reloader
from server.models.rollout import Rollout
from server.skills.api_keys import Keys
from server.skills.catalogue import Skills
from server.skills.limits import RateLimits
from server.web.api import assets
from server.web.api.admin import Admin
from server.web.api.chat import Chat
from server.web.api.demo_page import page as demo_page
from server.web.api.health import Health, Metrics
from server.web.api.models import Models
from server.web.api.registry import RegistryEndpoint
from server.web.api.reload import Reload
from server.web.api.usage import UsageEndpoint
from server.web.api.widget import Visits
from server.web.http import problems
from server.web.http.frame import Frame
from server.web.http.guard import Guard
from server.web.http.traces import Traces, open_traces
from server.web.metrics import Labels, observe

ASSETS = Path(__file__).parent / "assets"


class Parts(Struct, frozen=True):
    """Everything that is made before the server can be built; `loader` makes the models that a reload asks for."""

    config: Config
    skills: Skills
    ledger: Ledger
    rollout: Rollout
    loader: Loader


class Apps(NamedTuple):
    """The applications of the listeners, and the replies that all of them share."""

    public: ASGIApp
    admin: ASGIApp
    page: ASGIApp | None
    replies: Replies
    reloader: Reloader
    running: AbstractAsyncContextManager[None]
    """Entered before the listeners open, left after they are closed: the engine's thread, the ledger's last write."""


class Closing(NamedTuple):
    """What is closed after the last reply."""

    feedback: Feedback
    rate_limits: RateLimits
    traces: Traces
    webhook: Webhook | None


def build(parts: Parts) -> Apps:
    """The applications for these parts."""
    registry = CollectorRegistry()
    rollout, reloader = parts.rollout, Reloader(parts.config, parts.skills, parts.rollout, parts.loader)
    rate_limits = RateLimits(parts.config.rate_limits)
    feedback = Feedback(parts.config.feedback_file)
    labels = Labels(parts.skills, rollout)
    replies = Replies(
        rollout, Meter(parts.ledger, observe(parts.config, parts.ledger, feedback, labels, registry)), rate_limits
    )
    health = Health(replies, lambda: rollout.failure)
    models = Models(parts.skills, rollout)
    talk = Talk(
        conversations(parts), replies, lambda skill: rollout.of(skill.model), seconds=parts.config.reply_seconds
    )
    visits = visitors(parts, talk, feedback, rate_limits)
    routes = [*public_routes(parts, replies, models, health), *visits.routes()]
    public = Starlette(routes=routes, exception_handlers=HANDLERS)
    watched = [Route("/metrics", Metrics(registry).scrape), *admin_routes(parts, labels, reloader), *probes(health)]
    admin_keys = Keys(parts.config.admin_keys) if parts.config.admin_keys else None
    admin = Guard(Starlette(routes=watched, exception_handlers=HANDLERS), admin_keys)
    page = host_page(parts)
    traces = open_traces(parts.config.traces)
    closing = Closing(feedback, rate_limits, traces, webhook_of(parts, registry))
    refusals = Refusals(lambda: parts.skills.names)
    registry.register(refusals)
    framed = Frame(public, parts.skills, routes, traces, refusals.count)
    return Apps(framed, admin, page, replies, reloader, running(parts, reloader, closing))


HANDLERS = {
    SecateurError: problems.on_error,
    HTTPException: problems.on_http_exception,
    Exception: problems.on_bug,
}


def conversations(parts: Parts) -> Conversations:
    """The widget's conversations, none yet."""
    return Conversations(seconds=parts.config.conversation_seconds, most=parts.config.conversations)


def visitors(parts: Parts, talk: Talk, feedback: Feedback, rate_limits: RateLimits) -> Visits:
    """The widget's endpoints."""
    config = parts.config
    sessions = Sessions(token_seconds=config.token_seconds, resume_seconds=config.conversation_seconds)
    return Visits(parts.skills, sessions, talk, feedback, rate_limits)


def public_routes(parts: Parts, replies: Replies, models: Models, health: Health) -> list[Route]:
    """What the world sees."""
    chat = Chat(parts.skills, replies, max_body=parts.config.max_body)
    return [
        Route("/v1/chat/completions", chat.complete, methods=["POST"]),
        Route("/v1/models", models.list),
        Route("/v1/models/{name}", models.one),
        Route("/v1/skills/{name}", models.skill),
        *assets.routes(ASSETS / "widget"),
        *probes(health),
    ]


def admin_routes(parts: Parts, labels: Labels, reloader: Reloader) -> list[Route]:
    """What operators look at, and may change while the server runs."""
    dashboard = Admin(parts.ledger, labels.limits, lambda: parts.rollout.engines)
    return [
        Route("/admin/usage", UsageEndpoint(parts.ledger).get),
        Route("/admin/reload", Reload(reloader).reload, methods=["POST"]),
        Route("/admin/registry", RegistryEndpoint(parts.config.registry, parts.skills, parts.rollout).get),
        *dashboard.routes(ASSETS),
    ]


def probes(health: Health) -> list[Route]:
    """Liveness and readiness, the same on both listeners."""
    return [Route("/healthz", health.alive), Route("/readyz", health.ready)]


def host_page(parts: Parts) -> ASGIApp | None:
    """The page that embeds the widget of the first skill, where one is asked for; counts what its models made."""
    if parts.config.page_port is None:
        return None
    first = next(iter(parts.skills))
    skill = first.name

    def totals() -> dict[str, int]:
        sums, names, counts = parts.ledger.totals(), parts.rollout.names(first.model), Counter[str]()
        for (name, model, kind), n in sums.tokens.items():
            counts[kind] += n if name == skill and model in names else 0
        for (name, model, _), n in sums.requests.items():
            counts["requests"] += n if name == skill and model in names else 0
        return counts

    host = "127.0.0.1" if parts.config.host in ("0.0.0.0", "::") else parts.config.host  # no browser can open those
    host = f"[{host}]" if ":" in host else host
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
async def running(parts: Parts, reloader: Reloader, closing: Closing) -> AsyncIterator[None]:
    """The engines run and the ledger is open within; all are stopped after, the ledger last."""
    parts.rollout.start()
    if closing.webhook is not None:
        closing.webhook.start()
    following = asyncio.create_task(reloader.follow(parts.config.registry_seconds))
    try:
        yield
    finally:
        following.cancel()
        await asyncio.wait([following])
        await to_thread.run_sync(parts.rollout.stop)  # not on the loop, which a second signal must reach
        if closing.webhook is not None:
            await to_thread.run_sync(closing.webhook.stop)
        await to_thread.run_sync(parts.ledger.close)
        closing.feedback.close()
        await closing.rate_limits.close()
        await to_thread.run_sync(closing.traces.close)
