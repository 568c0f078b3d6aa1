"""Reads the JSON files that lie beside a model's weights."""

import json
from pathlib import Path
from typing import Any

from pruning.errors import ModelRefused


def settings_of(path: Path) -> dict[str, Any]:
    """The object in the file `path`, or an empty one where there is none; raises ModelRefused for other content."""
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelRefused(f"{path} does not hold a JSON object")
    return values
