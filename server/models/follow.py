"""Follows `registry:NAME@production`: looks the alias up regularly, checks new versions as `promote` does, loads them.

The same for models and for knowledge.

If the new version cannot be served, the old one stays and the log says why.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, NamedTuple, Protocol, Self, TypeVar

from server.artifact.checkpoint.lineage import Lineage, address
from server.artifact.registry import history, rules
from server.artifact.registry.seen import LastSeen
from server.artifact.registry.store import Move, Registry, Version
from server.artifact.signing.keys import Signers
from server.errors import RegistryError, SecateurError, reason
from server.storage.digests import FileDigests

logger = logging.getLogger(__name__)
PRODUCTION = "@production"


class Loaded(Protocol):
    """What is made of a version."""

    @property
    def lineage(self) -> Lineage:
        """The record that its files were loaded by."""


T = TypeVar("T", bound=Loaded)


class Found(NamedTuple):
    """A resolved version and its model's production moves; no moves unless the reference is NAME@production."""

    version: Version
    moves: Sequence[Move] = ()

    @property
    def mark(self) -> tuple[str, str]:
        """Version address and digest of the last move: changes when production changes, even to the same version."""
        return self.version.address, history.digests(self.moves)[-1] if self.moves else ""


class SignedReference(NamedTuple):
    """A reference to a version in a registry, and who may sign it."""

    url: str
    reference: str
    """NAME@ALIAS or NAME@NUMBER."""
    signers: Path
    """File of the allowed signers; read each time, so that a removed signer is refused at once."""

    seen: LastSeen
    """The last moves of production that this server has seen."""

    def resolve(self) -> Found:
        """What the reference names now; raises RegistryError."""
        with Registry.open(self.url) as registry:
            version = registry.resolve(self.reference)
            moves = registry.moves(version.model) if self.reference.endswith(PRODUCTION) else ()
        return Found(version, moves)

    def verify(self, found: Found, digests: FileDigests | None = None) -> None:
        """Raise SecateurError unless the version's files are intact, signed, and passed their gates or were overridden.

        Production also needs a signed move, chained to all before, that is not older than the last one seen.
        """
        version, signers = found.version, Signers.read(self.signers)
        if self.reference.endswith(PRODUCTION):
            rules.check_production(version, found.moves, signers)
            self.seen.advance(version.model, found.moves)
        rules.allowed(version, signers, digests)


class Follower(Generic[T]):
    """Loads each new version of a reference; `load` makes a model or knowledge from a directory and a name."""

    def __init__(self, source: SignedReference, load: Callable[[Path, str], T], found: Found) -> None:
        version = found.version
        self.version = version
        """The latest version that the reference named, whether it could be served or not."""
        self.refusal: tuple[str, str] | None = None
        """The version that the last `next` refused, and why."""
        self._source = source
        self._load = load
        self._mark = found.mark
        self._loaded = {version.name: version}
        self._newest = version.address
        self._unreachable = False

    @classmethod
    def open(cls, source: SignedReference, load: Callable[[Path, str], T], digests: FileDigests | None = None) -> Self:
        """Begin at the current version, verified but not loaded; raises RegistryError or ArtifactError.

        `digests` remembers the digests of its files.
        """
        found = source.resolve()
        source.verify(found, digests)
        return cls(source, load, found)

    def next(self) -> T | None:
        """The loaded new version, or None if the reference is unchanged or cannot be served."""
        self.refusal = None
        try:
            found = self._source.resolve()
        except Exception as error:  # following must go on
            if not self._unreachable:
                logger.error("%s; the old version stays", reason(error))
            self._unreachable = True
            return None
        self._unreachable = False
        if found.mark == self._mark:
            return None
        self._mark = found.mark  # if it fails, it is not tried again until the alias moves
        version = self.version = found.version
        try:
            self._source.verify(found)
            if version.address == self._newest:
                return None
            loaded = self._load(version.path, version.name)
            self.confirm(loaded.lineage)
            self._loaded[version.name] = version
            self._newest = version.address
            return loaded
        except Exception as error:  # whatever failed, the running version stays
            self.refusal = version.name, reason(error)
            logger.error("%s cannot be served: %s; the old version stays", *self.refusal)
            return None

    def confirm(self, lineage: Lineage) -> None:
        """Raise RegistryError if the files were exchanged between verification and loading."""
        if address(lineage) != self.version.address:
            raise RegistryError(f"{self.version.path} was exchanged while {self.version.name} was loaded")

    def began(self, skills: Sequence[str], name: str) -> None:
        """Record in the registry that the loaded version `name` answers these skills now."""
        try:
            with Registry.open(self._source.url) as registry:
                registry.bind(skills, self._loaded[name])
        except SecateurError as error:
            logger.warning("The registry does not record that %s answers %s: %s", name, ", ".join(skills), error)
