"""The demo page: a host page on its own origin that embeds the widget as a customer's page does.

Its Content-Security-Policy is the strictest under which the widget works.
"""

from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path
from string import Template
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from server.storage.database import StorageError

ASSETS = Path(__file__).parents[1] / "assets"
KINDS = ("input", "cached", "output", "requests")
FRESH = {"Cache-Control": "no-store"}


def page(skill: str, widget_url: str, totals: Callable[[], Mapping[str, int]], docs: Path | None = None) -> Starlette:
    """An app that serves the page for `skill`, /try to try the widget's options, and below /docs/ the folder `docs`.

    `widget_url` is that of widget.js.

    `totals`, called in a thread, returns the skill's counts by KINDS; `cached` tokens are part of `input`.
    """
    line = f'<script async src="{escape(widget_url)}" data-skill="{escape(skill)}"></script>'
    html = Template((ASSETS / "page.html").read_text("utf-8"))
    origin = escape(origin_of(widget_url))
    body = html.substitute(embed=line, embed_text=escape(line), skill=escape(skill), origin=origin)
    headers = {"Content-Security-Policy": policy(widget_url), "Referrer-Policy": "strict-origin-when-cross-origin"}

    async def tokens(_: Request) -> Response:
        try:
            counts = await run_in_threadpool(totals)  # the disk may be slow
        except StorageError:
            return Response(status_code=503, headers=FRESH)
        return JSONResponse({kind: counts.get(kind, 0) for kind in KINDS}, headers=FRESH)

    options = Template((ASSETS / "options/page.html").read_text("utf-8"))
    tried = options.substitute(widget=escape(widget_url), skill=escape(skill))
    files = [
        static("/try", tried.encode(), "text/html", headers),
        static("/try.css", (ASSETS / "options/page.css").read_bytes(), "text/css"),
        static("/try.js", (ASSETS / "options/page.js").read_bytes(), "text/javascript"),
        static("/", body.encode(), "text/html", headers),
        static("/page.css", (ASSETS / "page.css").read_bytes(), "text/css"),
        static("/page.js", (ASSETS / "page.js").read_bytes(), "text/javascript"),
    ]
    shown = [Mount("/docs", StaticFiles(directory=docs, html=True))] if docs is not None else []
    return Starlette(routes=[*files, Route("/tokens", tokens), *shown])


def policy(widget_url: str) -> str:
    """The page's Content-Security-Policy; the widget needs its origin in `script-src` and `connect-src`."""
    origin = origin_of(widget_url)
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src 'self' {origin}",
            f"connect-src 'self' {origin}",
            "style-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )


def origin_of(url: str) -> str:
    """The origin of `url`: scheme, host and port."""
    return "{0.scheme}://{0.netloc}".format(urlsplit(url))


def static(path: str, body: bytes, media_type: str, headers: Mapping[str, str] | None = None) -> Route:
    """A route that serves `body`."""
    always = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache", **(headers or {})}

    async def serve(_: Request) -> Response:
        return Response(body, headers=always, media_type=media_type)

    return Route(path, serve)
