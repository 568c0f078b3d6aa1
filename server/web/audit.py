"""What a server records in its audit log: its start and stop, its models and skills, keys, and admin requests."""

import asyncio
import hashlib
import math
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from anyio import to_thread
from msgspec.structs import replace
from prometheus_client import CollectorRegistry
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from server.artifact.checkpoint.lineage import address as artifact_address
from server.config import Config
from server.errors import ConfigError, Unauthorized
from server.metering.audit.chain import Event
from server.metering.audit.log import AuditLog
from server.metering.refusals import KeyFailures
from server.models.rollout import Rollout
from server.skills import api_keys
from server.skills.api_keys import Key, Keys
from server.storage.database import StorageError
from server.web.access.guard import AdminGuard
from server.web.access.sessions import Sessions
from server.web.api.admin.login import LoginEndpoints
from server.web.http import problems
from server.web.http.requests import RequestState, address
from server.web.http.throttle import Refused

KEY_SECONDS = 5.0
"""Between looks at the key files: `secateur keys` has no ledger, so the server records what it did."""
SERVER = "server"
UNKNOWN = "unknown"
Stamp = tuple[int, ...]


class Auditing:
    """Writes the audit log of a server, and throttles and records the refused requests of its two listeners."""

    def __init__(self, config: Config, registry: CollectorRegistry) -> None:
        self._config = config
        self.log = AuditLog(config.ledger)
        failures = KeyFailures()
        registry.register(failures)
        self._admin = Refused("admin", failures, self.log.put, listed=True)
        self._public = Refused("public", failures, self.log.put, listed=False)
        self.sessions = Sessions(config.admin_login) if config.admin_login else None
        self._watching: asyncio.Task[None] | None = None

    def guard(self, app: ASGIApp) -> AdminGuard:
        """The admin `app` behind its keys and its login."""
        keys = Keys(self._config.admin_keys) if self._config.admin_keys else None
        return AdminGuard(app, keys, self.sessions, self._admin, self.log.put)

    def login_routes(self, assets: Path) -> list[Route]:
        """The routes of the admin login; none unless it is configured."""
        if self._config.admin_login is None or self.sessions is None:
            return []
        return LoginEndpoints(self._config.admin_login, self.sessions, self._admin, self.log.put, assets).routes()

    @property
    def handlers(self) -> dict[Any, Any]:
        """Starlette's exception handlers that record refused keys of the public listener."""
        return {Unauthorized: self._on_unauthorized}

    async def start(self, rollout: Rollout) -> None:
        """Record the start, and follow the key files from now on; raises LedgerUnavailable."""
        begun = Event(SERVER, "server.start", f"process {os.getpid()}", result=f"configuration {digest(self._config)}")
        await asyncio.wrap_future(self.log.put(begun))
        for model in rollout.models:
            self.log.put(Event(SERVER, "model.loaded", model.name, result=artifact_address(model.lineage)))
        paths = [path for path in (self._config.keys, self._config.admin_keys) if path is not None]
        self._watching = asyncio.create_task(self._follow_keys(paths))

    async def stop(self) -> None:
        """Record the stop and close the log."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        self._admin.close()
        self._public.close()
        self.log.put(Event(SERVER, "server.stop", f"process {os.getpid()}"))
        await to_thread.run_sync(self.log.close)

    async def _on_unauthorized(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, Unauthorized)
        state = RequestState.of(request.scope)
        wrong_key = error.code in ("invalid_api_key", "api_key_expired")
        answer = self._public.judge(error, address(request), state.key or "", "public") if wrong_key else error
        return await problems.on_error(request, answer)

    async def _follow_keys(self, paths: Iterable[Path]) -> None:
        """Record what happened to the keys in these files; never returns.

        An unchanged file is not read again before the next of its keys expires.
        """
        recorded: set[tuple[str, str]] = set()
        files = [KeyFile(path) for path in paths]
        while True:
            for file in files:
                with suppress(ConfigError, StorageError):  # reported by who uses the file, and the ledger
                    for event in await to_thread.run_sync(self._key_events, file) if file.changed else ():
                        if (event.action, event.object) not in recorded:
                            self.log.put(event)
                            recorded.add((event.action, event.object))
            await asyncio.sleep(KEY_SECONDS)

    def _key_events(self, file: "KeyFile") -> list[Event]:
        stamp, keys = file.stamp, file.read()
        found = list(key_events(file.path.name, keys, self.log.objects("key.created"))) if stamp else []
        file.note(stamp, keys)
        return found


class KeyFile:
    """A file of keys that is followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: Stamp | None = ()
        self._until = math.inf

    @property
    def stamp(self) -> Stamp | None:
        """What changes with the file's content; None for a missing file."""
        try:
            found = os.stat(self.path)
        except OSError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size

    @property
    def changed(self) -> bool:
        """Whether the file is another one than was noted, or a key has expired since."""
        return self.stamp != self._seen or time.time() >= self._until

    def read(self) -> Sequence[Key]:
        """Its keys now; raises ConfigError."""
        return api_keys.read(self.path).keys if self.path.exists() else ()

    def note(self, stamp: Stamp | None, keys: Iterable[Key]) -> None:
        """Note that these keys, read after the file had this stamp, were dealt with."""
        valid = [key for key in keys if key.expires and not key.revoked and not key.expired]
        self._until = min((datetime.fromisoformat(key.expires).timestamp() for key in valid), default=math.inf)
        self._seen = stamp


def key_events(file: str, keys: Iterable[Key], known: Iterable[str]) -> Iterator[Event]:
    """Everything that happened to the keys of `file`; `known` are the objects of all recorded `key.created`."""
    here = set()
    for key in keys:
        name = f"{key.id} in {file}"
        here.add(name)
        made = f"opens {key.opens}{f', replaces {key.replaces}' if key.replaces else ''}; created {key.created}"
        yield Event(key.created_by or UNKNOWN, "key.created", name, result=made, once=True)
        if key.revoked:
            yield Event(key.revoked_by or UNKNOWN, "key.revoked", name, result=f"revoked {key.revoked}", once=True)
        elif key.expired:
            yield Event(SERVER, "key.expired", name, result=f"expired {key.expires}", once=True)
        if key.limited:
            change = f"{name} at {key.limited}"
            yield Event(key.limited_by or UNKNOWN, "key.limited", change, result=str(key.limits or "none"), once=True)
    for name in known:
        if name.endswith(f" in {file}") and name not in here:
            yield Event(UNKNOWN, "key.removed", name, once=True)


def digest(config: Config) -> str:
    """SHA-256 of the settings in effect; passwords in URLs and the login's secret are left out."""
    login = config.admin_login and replace(config.admin_login, client_secret="")
    text = msgspec.json.encode(replace(config, admin_login=login), enc_hook=str, order="sorted").decode()
    return "sha256:" + hashlib.sha256(re.sub(r"//[^@/\"]*@", "//", text).encode()).hexdigest()
