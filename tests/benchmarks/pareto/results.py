"""The figures of measured candidates, and the JSON file that keeps them."""

from pathlib import Path

import msgspec

from pruning.errors import DataError
from server.storage.files import write_atomically

Rounds = dict[str, tuple[float, ...]]
"""Tokens a second, or seconds, in each round, by event."""


class Quality(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a candidate makes of the held-out texts and the task."""

    nats: dict[str, float]
    """Nats of each text, summed over its windows."""
    choices: float
    """Fraction of the task's right answers that it prefers to three others."""
    items: int
    """Questions of the task."""
    runner: str
    """What computed it."""


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All figures of one candidate."""

    base: str
    name: str
    kind: str
    bits: float
    engine: str
    made_of: str
    """SHA-256 of the recipe, or of the peer's file."""
    bytes: int
    """Of the weights, as the file has them and as they are resident."""
    parameters: int
    minutes: float
    """Of one core, for all stages."""
    trained: int
    """Tokens that it was distilled on."""
    quality: Quality
    speed: Rounds = {}
    unit: str = ""
    """Whose seconds: of the clock, or of the processor."""

    @property
    def key(self) -> str:
        """Base and name."""
        return f"{self.base}: {self.name}"


class Results(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file."""

    texts: dict[str, dict[str, int]]
    """Bytes and, for each base, tokens of each held-out text, by its name: {"bytes": ..., BASE: ...}."""
    machine: str
    """Where speed was measured."""
    rows: tuple[Measured, ...]

    def with_row(self, row: Measured) -> "Results":
        """These results with `row` instead of an earlier one of the same name."""
        kept = tuple(one for one in self.rows if one.key != row.key)
        return msgspec.structs.replace(self, rows=(*kept, row))


def read(path: Path) -> Results:
    """The results in `path`, empty if there is no file; raises DataError."""
    if not path.exists():
        return Results({}, "", ())
    try:
        return msgspec.json.decode(path.read_bytes(), type=Results)
    except (OSError, msgspec.DecodeError) as error:
        raise DataError(f"{path} holds no measured candidates: {error}") from None


def write(path: Path, results: Results) -> None:
    """Write all results, by base and name."""
    rows = tuple(sorted(results.rows, key=lambda row: row.key))
    path.parent.mkdir(parents=True, exist_ok=True)
    encoded = msgspec.json.encode(msgspec.structs.replace(results, rows=rows))
    write_atomically(path, msgspec.json.format(encoded, indent=1) + b"\n")
