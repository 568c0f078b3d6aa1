"""Joins a file that several packages hold in parts, as registries limit the size of one."""

import hashlib
import re
import shutil
from pathlib import Path

from pruning.errors import RecipeError
from server.storage.files import replacing
from server.storage.packages import located

JOINED = Path("build/joined")
"""The folder of joined files."""
RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def expanded(reference: str) -> list[str]:
    """The references that `reference` abbreviates: `{1..4}` counts upward, all such ranges in it together.

    Leading zeros are kept. Raises RecipeError for ranges of unequal length.
    """
    ranges = [range(int(first), int(last) + 1) for first, last in RANGE.findall(reference)]
    if len({len(numbers) for numbers in ranges}) > 1 or not all(ranges):
        raise RecipeError(f"{reference}: each range, such as {{1..4}}, must count upward over the same number of parts")
    return [_numbered(reference, index) for index in range(max(map(len, ranges), default=0))] or [reference]


def joined(reference: str) -> Path:
    """The file whose parts `reference` lists, joined in their order below `JOINED` unless it is there already.

    Its name is that of the first part without `.part00` or the like. Raises ConfigError where a part is missing.
    """
    parts = [located(part) for part in expanded(reference)]
    key = hashlib.sha256(repr([(part.name, part.stat().st_size) for part in parts]).encode()).hexdigest()[:12]
    target = JOINED / key / re.sub(r"\.(part)?\d+$", "", parts[0].name)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as partial, partial.open("wb") as whole:
            for part in parts:
                with part.open("rb") as file:
                    shutil.copyfileobj(file, whole)
    return target


def _numbered(reference: str, index: int) -> str:
    """`reference` with the number at `index` of each range."""
    return RANGE.sub(lambda match: str(int(match[1]) + index).zfill(len(match[1])), reference)
