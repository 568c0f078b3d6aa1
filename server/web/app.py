"""Builds the ASGI apps from the opened parts: their routes, and what starts and stops with them."""

from collections import Counter
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.routing import Route
from starlette.types import ASGIApp

from server.chat.conversation.session import Sessions
from server.chat.conversation.store import Conversations
from server.chat.conversation.talk import Talk
from server.chat.embeddings import Embeddings
from server.chat.grounded import Grounder
from server.chat.kept.feedback import Feedback
from server.chat.kept.idempotency import KeptReplies
from server.chat.kept.idempotent_replies import IdempotentReplies
from server.chat.kept.ratings import SharedFeedback
from server.chat.kept.sealing import Seal
from server.chat.kept.texts import Texts
from server.chat.reply import Replies
from server.config import Config
from server.errors import SecateurError
from server.metering.histograms import Observers
from server.metering.meter import Meter
from server.metering.refusals import Refusals
from server.metering.webhooks import Target, Webhook, read_secret
from server.models.reload import Loaded, Reloader, open_revisions, skills_folder
from server.skills.limits import RateLimits
from server.web.api import assets
from server.web.api.admin.feedback import FeedbackEndpoint
from server.web.api.admin.page import AdminPage
from server.web.api.admin.registry import RegistryEndpoint
from server.web.api.admin.reload import ReloadEndpoint
from server.web.api.admin.skills.endpoints import SkillsEndpoints
from server.web.api.admin.skills.experiment import ExperimentEndpoints
from server.web.api.admin.skills.keys import KeysEndpoints
from server.web.api.admin.skills.knowledge import KnowledgeEndpoints
from server.web.api.admin.skills.moving import Mover
from server.web.api.admin.skills.playground import Playground
from server.web.api.admin.skills.said import SaidEndpoints
from server.web.api.admin.usage import UsageEndpoint
from server.web.api.anthropic.errors import ANTHROPIC
from server.web.api.anthropic.schema import parse as parse_message
from server.web.api.anthropic.schema import parse_count
from server.web.api.count_endpoint import CountEndpoint
from server.web.api.demo_page import page as demo_page
from server.web.api.handover import HandoverEndpoint
from server.web.api.health import HealthEndpoints, MetricsEndpoint
from server.web.api.openai.chat.schema import parse as parse_chat
from server.web.api.openai.completions.schema import parse as parse_completion
from server.web.api.openai.embeddings import EmbeddingsEndpoint
from server.web.api.openai.models import ModelEndpoints
from server.web.api.openai.responses.schema import RESPONSES
from server.web.api.openai.responses.schema import parse as parse_response
from server.web.api.openai.tokenize import TokenizeEndpoints
from server.web.api.reply_endpoint import ReplyEndpoint
from server.web.api.widget import WidgetEndpoints
from server.web.audit import Auditing
from server.web.http import problems
from server.web.http.connections import ClosedConnections
from server.web.http.metrics import Measured, RequestMetrics
from server.web.http.middleware import PublicMiddleware
from server.web.http.traces import open_traces
from server.web.metrics import Labels, StoreCollector, register_collectors
from server.web.process import ProcessMetrics
from server.web.running import Closing, Parts, running

ASSETS = Path(__file__).parent / "assets"


class Apps(NamedTuple):
    """One ASGI app per listener, and the parts that they share."""

    public: ASGIApp
    admin: ASGIApp
    page: ASGIApp | None
    """The demo page, if configured."""
    replies: Replies
    reloader: Reloader
    closed: ClosedConnections
    """Counts the connections that the listeners close."""
    running: AbstractAsyncContextManager[None]
    """Enter before the listeners open, leave after they close: starts the engines, and closes the ledger last."""


HANDLERS = {
    SecateurError: problems.on_error,
    HTTPException: problems.on_http_exception,
    Exception: problems.on_bug,
}


def feedback_of(parts: Parts, texts: Texts) -> Feedback:
    """The ratings: beside the conversations in a database, else in a file of their own."""
    if texts.in_memory:
        return Feedback(parts.config.feedback_file)
    return SharedFeedback(texts, parts.config.feedback_file, instance=parts.ledger.instance)


def build(parts: Parts) -> Apps:
    """The apps for these parts; call it once."""
    config, registry = parts.config, CollectorRegistry()
    rate_limits = RateLimits(config.rate_limits, config.rate_limits_fail)
    registry.register(StoreCollector(rate_limits.store))
    texts = Texts(config.conversations_at, Seal.read(config.conversation_key) if config.conversation_key else None)
    feedback = feedback_of(parts, texts)
    labels, traces = Labels(parts.skills, parts.rollout), open_traces(config.traces)
    observers = Observers([register_collectors(registry, config, parts.ledger, feedback, labels), traces])
    meter, grounder = Meter(parts.ledger, observers), Grounder(parts.shelf.of, feedback.questions.note)
    replies = Replies(parts.rollout, meter, rate_limits, parts.skills.allowance, grounder)
    auditing = Auditing(config, registry)
    revisions = open_revisions(config) if config.skill_revisions != "off" else None
    reloader = Reloader(config, parts.skills, loaded_of(parts), auditing.log.put, revisions)
    health = HealthEndpoints(replies, lambda: parts.rollout.failure)
    talk = talk_of(parts, replies, texts)
    widget = WidgetEndpoints(parts.skills, sessions_of(config, texts), talk, feedback, rate_limits)
    registry.register(refusals := Refusals(lambda: parts.skills.names))
    registry.register(closed := ClosedConnections())
    requests, process = RequestMetrics(registry, refusals, closed), ProcessMetrics(registry)
    routes = [*public_routes(parts, IdempotentReplies(replies, KeptReplies(texts))), *widget.routes()]
    routes += [Route("/v1/widget/handover", HandoverEndpoint(widget.visitor, rate_limits).send, methods=["POST"])]
    routes += [embeddings_route(parts, Embeddings(replies, meter, rate_limits, parts.skills.allowance))]
    routes += [Route("/health", health.health), *probes(health)]
    page = AdminPage(parts.ledger, labels, lambda: parts.rollout.engines, auditing.sessions)
    watched = [*admin_routes(parts, registry, reloader), *page.routes(ASSETS), *auditing.login_routes(ASSETS)]
    mover = Mover(revisions, reloader, auditing.log.put, edit=config.skill_revisions == "edit")
    watched += [*manager_routes(parts, mover, feedback, texts, replies), *probes(health)]
    hook = webhook_of(parts, registry)
    closing = Closing(feedback, rate_limits, traces, hook, process, auditing, texts, talk, revisions)
    return Apps(
        public=PublicMiddleware(starlette(routes, auditing.handlers), parts.skills, routes, traces, requests.ended),
        admin=Measured(auditing.guard(starlette(watched)), watched, requests),
        page=host_page(parts),
        replies=replies,
        reloader=reloader,
        closed=closed,
        running=running(parts, reloader, closing),
    )


def starlette(routes: list[Route], handlers: Mapping[Any, Any] = MappingProxyType({})) -> Starlette:
    """An application whose errors have OpenAI's shape; `handlers` are added to HANDLERS."""
    return Starlette(routes=routes, exception_handlers={**HANDLERS, **handlers})


def loaded_of(parts: Parts) -> Loaded:
    """What a reload changes."""
    return Loaded(parts.rollout, parts.loader, parts.shelf)


def sessions_of(config: Config, texts: Texts) -> Sessions:
    """The widget's sessions, signed with the key that lies beside the conversations."""
    key, life = texts.signing_key, config.conversation_life
    return Sessions(token_seconds=config.token_seconds, resume_seconds=life, key=key)


def talk_of(parts: Parts, replies: Replies, texts: Texts) -> Talk:
    """The widget's conversations."""
    config = parts.config
    conversations = Conversations(
        texts, seconds=config.conversation_life, most=config.conversations, instance=parts.ledger.instance
    )
    return Talk(conversations, replies, lambda skill: parts.rollout.of(skill.model), seconds=config.reply_seconds)


def public_routes(parts: Parts, kept: IdempotentReplies) -> list[Route]:
    """OpenAI's API and the widget's files."""
    max_body = parts.config.max_body
    chat = ReplyEndpoint(parse_chat, parts.skills, kept, max_body=max_body)
    messages = ReplyEndpoint(parse_message, parts.skills, kept, max_body=max_body, dialect=ANTHROPIC)
    count = partial(CountEndpoint, skills=parts.skills, rollout=parts.rollout, max_body=max_body)
    responses = ReplyEndpoint(parse_response, parts.skills, kept, max_body=max_body, dialect=RESPONSES)
    completions = ReplyEndpoint(parse_completion, parts.skills, kept, max_body=max_body)
    models = ModelEndpoints(parts.skills, parts.rollout, parts.loader.encoders)
    tokens = TokenizeEndpoints(parts.skills, parts.rollout, max_body=max_body)
    return [
        Route("/v1/chat/completions", chat.answer, methods=["POST"]),
        Route("/v1/completions", completions.answer, methods=["POST"]),
        Route("/v1/responses", responses.answer, methods=["POST"]),
        Route("/v1/messages", messages.answer, methods=["POST"]),
        Route("/v1/messages/count_tokens", count(parse_count, dialect=ANTHROPIC).count, methods=["POST"]),
        Route("/v1/responses/input_tokens", count(parse_response, dialect=RESPONSES).count, methods=["POST"]),
        Route("/v1/models", models.list),
        Route("/v1/models/{name:path}", models.one),
        Route("/v1/skills/{name}", models.skill),
        Route("/v1/skills/{name}/lineage", models.lineage),
        Route("/version", models.version),
        Route("/tokenize", tokens.tokenize, methods=["POST"]),
        Route("/detokenize", tokens.detokenize, methods=["POST"]),
        *assets.routes(ASSETS / "widget"),
    ]


def embeddings_route(parts: Parts, embeddings: Embeddings) -> Route:
    """OpenAI's embeddings, by the encoders that skills name."""
    endpoint = EmbeddingsEndpoint(parts.skills, embeddings, parts.loader.encoders, max_body=parts.config.max_body)
    return Route("/v1/embeddings", endpoint.embed, methods=["POST"])


def admin_routes(parts: Parts, registry: CollectorRegistry, reloader: Reloader) -> list[Route]:
    """Metrics, usage, reloads and the registry."""
    return [
        Route("/metrics", MetricsEndpoint(registry).scrape),
        Route("/admin/usage", UsageEndpoint(parts.ledger).get),
        Route("/admin/reload", ReloadEndpoint(reloader).reload, methods=["POST"]),
        Route("/admin/registry", RegistryEndpoint(parts.config, parts.skills, parts.rollout).get),
    ]


def manager_routes(parts: Parts, mover: Mover, feedback: Feedback, texts: Texts, replies: Replies) -> list[Route]:
    """The skills manager: skills and their revisions, experiments, the playground, and what visitors said."""
    return [
        *SkillsEndpoints(parts.config, parts.skills, mover, feedback).routes(),
        *ExperimentEndpoints(parts.skills, parts.ledger, feedback, mover).routes(),
        *KeysEndpoints(parts.config, parts.skills, mover).routes(),
        *KnowledgeEndpoints(parts.config, mover).routes(),
        *SaidEndpoints(parts.config, texts, feedback, mover).routes(),
        *Playground(replies, parts.rollout, parts.shelf, skills_folder(parts.config)).routes(),
        Route("/admin/feedback", FeedbackEndpoint(feedback).get),
    ]


def probes(health: HealthEndpoints) -> list[Route]:
    """Liveness and readiness, on the public and the admin listener."""
    return [Route("/healthz", health.alive), Route("/readyz", health.ready)]


def host_page(parts: Parts) -> ASGIApp | None:
    """The demo page with the first skill's widget and its token counts; None unless `page_port` is set."""
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

    host = "127.0.0.1" if parts.config.host in ("0.0.0.0", "::") else parts.config.host  # browsers cannot open those
    host = f"[{host}]" if ":" in host else host
    return demo_page(skill, f"http://{host}:{parts.config.port}/widget.js", totals, parts.config.page_docs)


def webhook_of(parts: Parts, registry: CollectorRegistry) -> Webhook | None:
    """The sender of settled replies, with its metrics registered; None unless `webhook` is set."""
    if not parts.config.webhook:
        return None
    secret = parts.config.webhook_secret
    webhook = Webhook(parts.ledger, Target(parts.config.webhook, read_secret(secret) if secret else b""))
    registry.register(webhook)
    return webhook
