"""What rows of `make bench-pruning` came to, as a JSON file keeps it."""

from pathlib import Path

import msgspec

from pruning.errors import DataError
from server.artifact.checkpoint.lineage import Recovery
from server.storage.files import write_atomically


class Result(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one row came to with one seed."""

    group: str
    name: str
    seed: int
    recipe: str
    """SHA-256 of the recipe without what it leaves at the defaults."""
    perplexity: dict[str, float]
    bytes: dict[str, int]
    parameters: int
    seconds: float
    """Spent in the stages, on `threads` processors that other rows may have shared."""
    threads: int
    peak_mb: float
    """The largest resident memory of the process that carried it out."""
    recoveries: tuple[Recovery, ...] = ()


def read(path: Path) -> dict[str, Result]:
    """The results in `path` by their recipes' digests, none where there is no such file; raises DataError."""
    if not path.exists():
        return {}
    try:
        results = msgspec.json.decode(path.read_bytes(), type=list[Result])
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{path} holds no measured rows: {error}") from None
    return {result.recipe: result for result in results}


def write(path: Path, results: dict[str, Result]) -> None:
    """Write all results, in an order of their own."""
    ordered = sorted(results.values(), key=lambda result: (result.group, result.name, result.seed, result.recipe))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, msgspec.json.format(msgspec.json.encode(ordered), indent=1) + b"\n")
