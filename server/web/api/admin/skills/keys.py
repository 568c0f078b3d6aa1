"""GET and POST /admin/skills/{name}/keys: the API keys that open a skill; a new key is shown once, in the answer."""

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

from msgspec import Meta, Struct
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.config import Config
from server.errors import InvalidRequest, NotFound
from server.metering.audit.chain import Event
from server.skills import api_keys
from server.skills.api_keys import Key
from server.skills.catalogue import Skills
from server.web.access.guard import who
from server.web.api.admin.skills.moving import Mover, read_json, refusing
from server.web.http.requests import address
from server.web.http.responses import json_response

MOST_BYTES = 4096


class NewKey(Struct, frozen=True, forbid_unknown_fields=True):
    """What a new key is for, and after how many days it is refused."""

    note: Annotated[str, Meta(max_length=200)] = ""
    days: Annotated[int, Meta(ge=1, le=3650)] | None = None


class OldKey(Struct, frozen=True, forbid_unknown_fields=True):
    """A key to revoke, by its id."""

    id: Annotated[str, Meta(pattern="^[0-9a-f]{12}$")]


class KeysEndpoints:
    """The endpoints, for the file `keys` of the settings; only operators may change it."""

    def __init__(self, config: Config, skills: Skills, mover: Mover) -> None:
        self._file = config.keys
        self._skills = skills
        self._mover = mover

    def routes(self) -> list[Route]:
        """The routes, on the admin listener."""
        return [
            Route("/admin/skills/{name}/keys", self.list),
            Route("/admin/skills/{name}/keys/create", self.create, methods=["POST"]),
            Route("/admin/skills/{name}/keys/revoke", self.revoke, methods=["POST"]),
        ]

    async def list(self, request: Request) -> Response:
        """The keys that open the skill, without their digests; `file` is false if the settings name no file."""
        name, file = self._skill(request), self._file
        keys = await refusing(lambda: _opening(file, name)) if file else []
        return json_response({"file": file is not None, "keys": [_shown(key) for key in keys]}, no_store=True)

    async def create(self, request: Request) -> Response:
        """Make a key; `key` is its secret, which is stored nowhere."""
        name, file, asked = self._skill(request), self._existing(), await read_json(request, NewKey, MOST_BYTES)
        expires = api_keys.after(timedelta(days=asked.days)) if asked.days else ""
        shown, kept = await refusing(lambda: api_keys.create(file, (name,), asked.note, expires=expires))
        await self._mover.record(Event(who(request), "key.create", f"{kept.id} for {name}", address(request)))
        return json_response({"key": shown, **_shown(kept)}, 201, no_store=True)

    async def revoke(self, request: Request) -> Response:
        """Refuse a key from the next request on, for every skill that it opens."""
        name, file, asked = self._skill(request), self._existing(), await read_json(request, OldKey, MOST_BYTES)
        if asked.id not in {key.id for key in await refusing(lambda: _opening(file, name))}:
            raise NotFound(f"No key {asked.id} opens {name!r}.", param="id")
        gone = await refusing(lambda: api_keys.revoke(file, asked.id))
        await self._mover.record(Event(who(request), "key.revoke", f"{gone.id} for {gone.opens}", address(request)))
        return json_response(_shown(gone), no_store=True)

    def _skill(self, request: Request) -> str:
        """The name of a skill that is served; raises NotFound."""
        found = self._skills.get(request.path_params["name"])
        if found is None:
            raise NotFound("No such skill is served: publish it first.", param="name")
        return found.name

    def _existing(self) -> Path:
        """The file; raises InvalidRequest if the settings name none."""
        if self._file is None:
            raise InvalidRequest(
                'This server has no file of keys: set `keys = "keys.json"` in server.toml and start it again.',
                code="no_key_file",
            )
        return self._file


def _opening(file: Path, name: str) -> list[Key]:
    """The keys in `file` that open a skill, the newest first; a missing file has none. Raises ConfigError."""
    keys = api_keys.read(file).keys if file.exists() else ()
    return [key for key in reversed(keys) if name in key.skills]


def _shown(key: Key) -> dict[str, Any]:
    state = "revoked" if key.revoked else "expired" if key.expired else "valid"
    return {
        "id": key.id,
        "state": state,
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "note": key.note,
        "opens": key.opens,
        "limits": str(key.limits or ""),
    }
