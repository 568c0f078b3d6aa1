"""The widget's files, read and compressed once when the app is built and served from memory.

Paths: `/widget.js`, short-lived and revalidated by its ETag, and `/assets/app-<hash>.js`, which never changes.
"""

import gzip
from hashlib import sha256
from pathlib import Path

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.errors import ConfigError

BRIEF = "public, max-age=300, stale-while-revalidate=86400"
FOREVER = "public, max-age=31536000, immutable"
HEADERS = {
    "Content-Type": "text/javascript; charset=utf-8",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Timing-Allow-Origin": "*",
}


class File(Struct, frozen=True):
    """One file in both encodings, with a strong ETag for each."""

    plain: bytes
    packed: bytes
    digest: str

    @classmethod
    def read(cls, path: Path) -> "File":
        """The file at `path`; the compressed bytes depend on nothing but its content."""
        plain = path.read_bytes()
        return cls(plain, gzip.compress(plain, 9, mtime=0), sha256(plain).hexdigest()[:32])

    def response(self, request: Request, cache: str) -> Response:
        """The file in the best encoding that the client takes, or 304 if it has it."""
        encoded = accepts_gzip(request.headers.get("Accept-Encoding", ""))
        etag = f'"{self.digest}{"-gzip" if encoded else ""}"'
        headers = {**HEADERS, "ETag": etag, "Cache-Control": cache}
        if matches(request.headers.get("If-None-Match", ""), etag):
            return Response(status_code=304, headers=headers)
        if encoded:
            headers["Content-Encoding"] = "gzip"
        return Response(self.packed if encoded else self.plain, headers=headers)


def routes(assets: Path) -> list[Route]:
    """The routes of the widget's files in `assets`; raises ConfigError if they are not there."""
    apps = sorted(assets.glob("app-*.js"))
    if not (assets / "widget.js").is_file() or len(apps) != 1:
        raise ConfigError(f"{assets} does not hold the widget: build it with `npm run build` in widget/")
    loader, app = File.read(assets / "widget.js"), File.read(apps[0])

    async def serve_loader(request: Request) -> Response:
        return loader.response(request, BRIEF)

    async def serve_app(request: Request) -> Response:
        # A cached loader may ask for the app of an earlier release: the present one keeps working for it.
        current = request.path_params["name"] == apps[0].name.removeprefix("app-")
        return app.response(request, FOREVER if current else "no-store")

    return [Route("/widget.js", serve_loader), Route("/assets/app-{name:str}", serve_app)]


def accepts_gzip(header: str) -> bool:
    """Whether an Accept-Encoding header takes gzip, by name or by `*`, and does not refuse it with q=0."""
    qualities: dict[str, float] = {}
    for part in header.lower().split(","):
        name, _, parameters = part.partition(";")
        quality = parameters.strip().removeprefix("q=")
        try:
            qualities[name.strip()] = float(quality) if quality else 1.0
        except ValueError:
            qualities[name.strip()] = 0.0
    return qualities.get("gzip", qualities.get("*", 0.0)) > 0


def matches(header: str, etag: str) -> bool:
    """Whether an If-None-Match header names this ETag; weak comparison, as RFC 9110 has it."""
    names = [name.strip().removeprefix("W/") for name in header.split(",")]
    return "*" in names or etag in names
