"""The figures of measured benchmark rows, and the JSON file that keeps them."""

from pathlib import Path

import msgspec

from pruning.errors import DataError
from server.artifact.checkpoint.lineage import Recovery
from server.storage.files import write_atomically


class RowResult(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The figures of one row with one seed."""

    group: str
    name: str
    seed: int
    recipe: str
    """SHA-256 of the recipe without defaults."""
    perplexity: dict[str, float]
    """Of "found", "dense", "int8" and "pruned", on the first text."""
    bytes: dict[str, int]
    """Of "found", "dense", "int8" and "pruned"."""
    parameters: int
    seconds: float
    """Wall time of the stages on `threads` cores, which other rows may have shared."""
    threads: int
    peak_mb: float
    """Peak resident memory of the process."""
    recoveries: tuple[Recovery, ...] = ()
    base: str = ""
    """Name of the base and its note: quantised already, or an off-grid copy."""
    texts: dict[str, dict[str, float]] = {}
    """Text -> perplexity by model, on the other texts of the plan."""


def read(path: Path) -> dict[str, RowResult]:
    """The results in `path` by the digest of their recipe, empty if there is no file; raises DataError."""
    if not path.exists():
        return {}
    try:
        results = msgspec.json.decode(path.read_bytes(), type=list[RowResult])
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{path} holds no measured rows: {error}") from None
    return {result.recipe: result for result in results}


def write(path: Path, results: dict[str, RowResult]) -> None:
    """Write all results, sorted by group, name and seed."""
    ordered = sorted(results.values(), key=lambda result: (result.group, result.name, result.seed, result.recipe))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n")
