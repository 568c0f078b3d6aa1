"""Remembers the last registry move that this server saw of each model, to detect a registry restored from a backup."""

import threading
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from server.artifact.registry.history import digests
from server.artifact.registry.store import Move
from server.errors import RegistryError
from server.storage.files import write_atomically


class Seen(Struct, frozen=True, forbid_unknown_fields=True):
    """A move and its digest."""

    move: int
    digest: str


class LastSeen:
    """The JSON file `path` of `Seen` by model, created at the first move; thread-safe, but for one process only."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def advance(self, model: str, moves: Sequence[Move]) -> None:
        """Remember the last of `moves`, whose chain was checked.

        Raises RegistryError if they do not contain the last move seen before, or if the file cannot be used.
        """
        with self._lock:
            known, found = self._read(), digests(moves)
            seen = known.get(model)
            if seen is not None and found[seen.move - 1 : seen.move] != [seen.digest]:
                raise RegistryError(
                    f"the registry lacks move {seen.move} of {model}, which this server has seen: it was restored or "
                    f"its moves were changed; if you restored it, remove {model!r} from {self._path}"
                )
            if seen is None or len(found) > seen.move:
                self._write({**known, model: Seen(len(found), found[-1])})

    def _read(self) -> dict[str, Seen]:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=dict[str, Seen])
        except FileNotFoundError:
            return {}
        except (OSError, msgspec.DecodeError) as error:
            raise RegistryError(f"{self._path}, the last moves seen, cannot be read: {error}") from None

    def _write(self, seen: dict[str, Seen]) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(self._path, msgspec.json.format(msgspec.json.encode(seen, order="sorted"), indent=2))
        except OSError as error:
            raise RegistryError(f"{self._path}, the last moves seen, cannot be written: {error.strerror}") from None
