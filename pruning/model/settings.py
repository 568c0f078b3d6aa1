"""Reads and writes the JSON files beside a model's weights, and reads the licence from its model card."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning.errors import ModelRefused


def read_settings(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, empty if there is no such file; raises ModelRefused for any other content."""
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelRefused(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(values, dict):
        raise ModelRefused(f"{path} does not hold a JSON object")
    return values


def positions(config: Mapping[str, Any]) -> int | None:
    """The number of positions that a model supports; None where its configuration does not say."""
    count = config.get("max_position_embeddings") or config.get("n_positions")
    return count if isinstance(count, int) else None


def license_of(folder: Path) -> str:
    """The licence named in the header of the model card in `folder`, or "unknown"."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    match = re.search(r"^license:\s*(\S+)", text, re.MULTILINE)
    return match[1] if match else "unknown"


def json_text(values: Mapping[str, Any]) -> str:
    """`values` as the text of a configuration file, with sorted keys."""
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
