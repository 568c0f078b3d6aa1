"""Reads what lies beside a model's weights: JSON files, and the model card's header."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pruning.errors import ModelRefused


def read_settings(path: Path) -> dict[str, Any]:
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


def positions(config: Mapping[str, Any]) -> int | None:
    """How many positions a model has; None where its configuration does not say."""
    count = config.get("max_position_embeddings") or config.get("n_positions")
    return count if isinstance(count, int) else None


def license_of(folder: Path) -> str:
    """The licence that the header of the model card in `folder` names, or "unknown"."""
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8", errors="replace") if card.exists() else ""
    match = re.search(r"^license:\s*(\S+)", text, re.MULTILINE)
    return match[1] if match else "unknown"


def json_text(values: Mapping[str, Any]) -> str:
    """The text of a configuration file."""
    return json.dumps(values, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
