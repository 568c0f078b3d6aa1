"""GET /healthz and /health (liveness), GET /readyz (readiness, with a reason) and GET /metrics."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from server.chat.reply import Replies
from server.web.http.responses import json_response


class HealthEndpoints:
    """The probes; `failure` returns why an engine failed, or None."""

    def __init__(self, replies: Replies, failure: Callable[[], str | None]) -> None:
        self._replies = replies
        self._failure = failure

    async def alive(self, _: Request) -> Response:
        """200, or 503 after an engine failed: only a restart recovers."""
        if self._failure() is not None and not self._replies.draining:
            return answer("the engine does not run", 503)
        return answer("ok", 200)

    async def health(self, request: Request) -> Response:
        """`alive` under the name that vLLM and llama-server give it."""
        return await self.alive(request)

    async def ready(self, _: Request) -> Response:
        """200, or 503 with the reason: draining, a failed engine, or an unwritable ledger."""
        if self._replies.draining:
            return answer("draining", 503)
        if self._failure() is not None:
            return answer("the engine does not run", 503)
        if not await self._replies.writable():
            return answer("the ledger cannot be written", 503)
        return answer("ready", 200)


class MetricsEndpoint:
    """The scrape endpoint of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    async def scrape(self, request: Request) -> Response:
        """All metrics, in the format that the Accept header asks for; collected in a thread."""
        encoder, content_type = choose_encoder(request.headers.get("accept", ""))
        content = await run_in_threadpool(encoder, self._registry)
        return Response(content, headers={"Content-Type": content_type})


def answer(status: str, code: int) -> Response:
    """The response of a probe."""
    return json_response({"status": status}, code, no_store=True)
