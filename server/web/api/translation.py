"""Reads bodies of other APIs as chat completions, and names the caller's own fields in errors."""

import re
from collections.abc import Mapping
from typing import Any

from server.errors import InvalidRequest
from server.web.api.openai.chat.schema import ChatRequest, read


def read_translated(fields: dict[str, Any], places: Mapping[str, str]) -> ChatRequest:
    """The chat request of translated `fields`; `places` maps paths of them to the caller's own.

    Raises InvalidRequest in the caller's words.
    """
    try:
        return read(fields)
    except InvalidRequest as error:
        raise renamed(error, places) from None


def renamed(error: InvalidRequest, places: Mapping[str, str]) -> InvalidRequest:
    """The error with its path rewritten by the longest key of `places` that begins it."""
    found = next((path for path in sorted(places, key=len, reverse=True) if below(error.param, path)), None)
    if error.param is None or found is None:
        return error
    param = places[found] + error.param[len(found) :]
    message = re.sub(rf"\b{re.escape(error.param)}", lambda _: param, error.message)
    return InvalidRequest(message, param=param, code=error.code, reason=error.reason)


def below(param: str | None, path: str) -> bool:
    """Whether `param` is `path` or a field or entry of it."""
    return param is not None and param.startswith(path) and param[len(path) : len(path) + 1] in ("", ".", "[")
