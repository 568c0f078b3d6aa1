"""The widget's files, read and compressed when the app is built, and served from memory.

`/widget.js` is cached briefly and revalidated by its ETag; `/assets/app-<hash>.js` and the chunks of rare code beside
it, `/assets/chunk-<name>-<hash>.js`, are cached for ever.
`/v/<version>/widget.js` is the whole widget in one file; `/v/<version>/sri.json` has its digest for `integrity`.
Brotli files come from the widget's build; gzip is done here.
"""

import gzip
import json
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from msgspec import Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.errors import ConfigError, NotFound
from server.web.http import problems

BRIEF = "public, max-age=300, stale-while-revalidate=86400"
FOREVER = "public, max-age=31536000, immutable"
HEADERS = {
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "Timing-Allow-Origin": "*",
}
TYPES = {".js": "text/javascript; charset=utf-8", ".json": "application/json"}
LATEST = "latest"


class File(Struct, frozen=True):
    """A file in each content encoding, smallest first; each encoding's strong ETag is derived from `digest`."""

    bodies: dict[str, bytes]
    digest: str
    media_type: str

    @classmethod
    def read(cls, path: Path) -> "File":
        """The file at `path`; compression is deterministic, so that replicas agree on ETags."""
        plain = path.read_bytes()
        beside = path.parent / "brotli" / f"{path.name}.br"
        bodies = {"br": beside.read_bytes()} if beside.is_file() else {}
        bodies |= {"gzip": gzip.compress(plain, 9, mtime=0), "": plain}
        return cls(bodies, sha256(plain).hexdigest()[:32], TYPES[path.suffix])

    def response(self, request: Request, cache: str) -> Response:
        """The smallest encoding that the client accepts, or 304 if If-None-Match names it."""
        wanted = request.headers.get("Accept-Encoding", "")
        encoding = next(name for name in self.bodies if not name or accepts(name, wanted))
        etag = f'"{self.digest}{encoding and "-" + encoding}"'
        headers = {**HEADERS, "Content-Type": self.media_type, "ETag": etag, "Cache-Control": cache}
        if matches(request.headers.get("If-None-Match", ""), etag):
            return Response(status_code=304, headers=headers)
        if encoding:
            headers["Content-Encoding"] = encoding
        return Response(self.bodies[encoding], headers=headers)


def routes(assets: Path) -> list[Route]:
    """Routes for the built widget in the folder `assets`; raises ConfigError if it is incomplete."""
    paths = {path.name: path for path in assets.rglob("*") if path.suffix in TYPES}
    apps = [name for name in paths if name.startswith("app-") and name.count("-") == 1]
    if not {"widget.js", "single.js", "sri.json"} <= paths.keys() or len(apps) != 1:
        raise ConfigError(f"{assets} does not hold the widget: build it with `npm run build` in widget/")
    parts = {name: File.read(path) for name, path in paths.items() if name.startswith(("app-", "chunk-"))}
    loader = File.read(paths["widget.js"])
    version = json.loads(paths["sri.json"].read_bytes())["version"]
    whole = {"widget.js": File.read(paths["single.js"]), "sri.json": File.read(paths["sri.json"])}

    async def serve_loader(request: Request) -> Response:
        return loader.response(request, BRIEF)

    async def serve_part(request: Request) -> Response:
        # A cached loader may name the app of an earlier release, and that app its language: serve the current files.
        name = f"app-{request.path_params['name']}"
        if known := parts.get(name):
            return known.response(request, FOREVER)
        kind = name.rpartition("-")[0]
        present = next((part for part in parts if part.rpartition("-")[0] == kind), apps[0])
        return parts[present].response(request, "no-store")

    async def serve_whole(request: Request) -> Response:
        wanted, file = request.path_params["version"], whole.get(request.path_params["file"])
        if file is None or wanted not in (version, LATEST):
            return problems.response(NotFound(f"This server has version {version} of the widget.", code="not_found"))
        return file.response(request, FOREVER if wanted == version else BRIEF)

    return [
        Route("/widget.js", serve_loader),
        Route("/assets/app-{name:str}", serve_part),
        chunk_route(parts),
        Route("/v/{version:str}/{file:str}", serve_whole),
    ]


def chunk_route(parts: Mapping[str, File]) -> Route:
    """The route for chunks: an app understands only the ones of its own build, and does without others."""

    async def serve(request: Request) -> Response:
        known = parts.get(f"chunk-{request.path_params['name']}")
        if known is not None:
            return known.response(request, FOREVER)
        gone = problems.response(NotFound("This server has another version of the widget.", code="not_found"))
        gone.headers.update({**HEADERS, "Cache-Control": "no-store"})
        return gone

    return Route("/assets/chunk-{name:str}", serve)


def accepts(encoding: str, header: str) -> bool:
    """Whether an Accept-Encoding header accepts `encoding`, by name or by `*`, with a quality above 0."""
    qualities: dict[str, float] = {}
    for part in header.lower().split(","):
        name, _, parameters = part.partition(";")
        quality = parameters.strip().removeprefix("q=")
        try:
            qualities[name.strip()] = float(quality) if quality else 1.0
        except ValueError:
            qualities[name.strip()] = 0.0
    return qualities.get(encoding, qualities.get("*", 0.0)) > 0


def matches(header: str, etag: str) -> bool:
    """Whether an If-None-Match header lists `etag`, by weak comparison (RFC 9110, 13.1.2)."""
    names = [name.strip().removeprefix("W/") for name in header.split(",")]
    return "*" in names or etag in names
