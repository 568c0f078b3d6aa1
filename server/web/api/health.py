"""GET /healthz (the process answers) and /readyz (it would accept a request now, or why not); GET /metrics."""

from collections.abc import Callable

import msgspec
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from server.chat.reply import Replies


class Health:
    """The probes; `failure` says why the engine cannot run, or None while it can."""

    def __init__(self, replies: Replies, failure: Callable[[], str | None]) -> None:
        self._replies = replies
        self._failure = failure

    async def alive(self, _: Request) -> Response:
        """200 as long as the event loop turns, but for an engine that failed: only a restart brings it back."""
        if self._failure() is not None and not self._replies.draining:
            return answer("the engine does not run", 503)
        return answer("ok", 200)

    async def ready(self, _: Request) -> Response:
        """200, or 503 with the reason."""
        if self._replies.draining:
            return answer("draining", 503)
        if self._failure() is not None:
            return answer("the engine does not run", 503)
        if not await self._replies.writable():
            return answer("the ledger cannot be written", 503)
        return answer("ready", 200)


class Metrics:
    """The scrape endpoint of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def scrape(self, request: Request) -> Response:
        """Everything, in the format the scraper accepts; reads the ledger's totals in a thread."""
        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        content = await run_in_threadpool(encoder, self._registry)
        return Response(content, headers={"Content-Type": content_type})


def answer(status: str, code: int) -> Response:
    """One word or sentence as JSON, never cached."""
    return Response(msgspec.json.encode({"status": status}), code, {"Cache-Control": "no-store"}, "application/json")
