"""Counts and times requests by route, and an app's middleware for it; labels are bounded by the routes of the app."""

import time
from collections.abc import Iterable, Mapping

from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.errors import TooSlow
from server.metering.refusals import Refusals
from server.web.http.connections import ClosedConnections
from server.web.http.requests import RequestState

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
UNMATCHED = "unmatched"
NO_STATUS = "none"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


class RequestMetrics:
    """The metrics `secateur_http_*`, and the counters of refusals and of closed connections that requests add to."""

    def __init__(self, registry: CollectorRegistry, refusals: Refusals, closed: ClosedConnections) -> None:
        self._refusals = refusals
        self._closed = closed
        self._requests = Counter(
            "secateur_http_requests",
            "Requests by pattern of the path (`unmatched`: none), method and status (`none`: the client left before).",
            ("route", "method", "status"),
            registry=registry,
        )
        self._seconds = Histogram(
            "secateur_http_request_duration_seconds",
            "From a request's head to the end of its response, streams included.",
            ("route",),
            registry=registry,
            buckets=SECONDS,
        )

    def ended(self, state: RequestState) -> None:
        """Count a request with the facts that `state` has at its end."""
        route, status = state.route or UNMATCHED, NO_STATUS if state.status is None else str(state.status)
        self._requests.labels(route, method_of(state.method or ""), status).inc()
        self._seconds.labels(route).observe(state.seconds or 0.0)
        if state.status == TooSlow.status:
            self._closed.late("body")
        if state.refused is not None:
            self._refusals.count(state.skill or "", state.refused)


class Measured:
    """Middleware that counts the requests of an `app` with these routes."""

    def __init__(self, app: ASGIApp, routes: Iterable[Route], metrics: RequestMetrics) -> None:
        self._app = app
        self._paths = paths_of(routes)
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state, started = RequestState(method=scope["method"]), time.monotonic()

        async def noting(message: Message) -> None:
            if message["type"] == "http.response.start":
                state.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            state.route, state.seconds = route_of(scope, self._paths), time.monotonic() - started
            self._metrics.ended(state)


def method_of(method: str) -> str:
    """The method, or `_OTHER` as OpenTelemetry calls an unknown one: any word is a valid method."""
    return method if method in METHODS else "_OTHER"


def paths_of(routes: Iterable[Route]) -> dict[object, str]:
    """The path pattern of each route, by its endpoint."""
    return {route.endpoint: route.path for route in routes}


def route_of(scope: Scope, paths: Mapping[object, str]) -> str:
    """The pattern that a routed request's path matched: the path itself may hold a client's own text."""
    endpoint = scope.get("endpoint")
    return paths.get(endpoint, UNMATCHED) if endpoint else UNMATCHED
