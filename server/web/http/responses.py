"""JSON responses of the endpoints."""

from typing import Any

import msgspec
from starlette.responses import Response


def json_response(value: dict[str, Any], status: int = 200, *, no_store: bool = False) -> Response:
    """`value` as JSON; `no_store` forbids caching it."""
    headers = {"Cache-Control": "no-store"} if no_store else {}
    return Response(msgspec.json.encode(value), status, headers, "application/json")
