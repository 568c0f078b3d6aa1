"""Follows `registry:NAME@production`: looks the alias up regularly, verifies a new version's signature and loads it.

If the new version cannot be served, the old one stays and the log says why.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple, Self

from server.artifact.checkpoint.lineage import Lineage, address
from server.artifact.registry import rules
from server.artifact.registry.store import Registry, Version
from server.artifact.signing.keys import Signers
from server.errors import RegistryError, SecateurError, reason
from server.models.rollout import Model
from server.storage.digests import FileDigests

logger = logging.getLogger(__name__)


class SignedReference(NamedTuple):
    """A reference to a version in a registry, and who may sign it."""

    url: str
    reference: str
    """NAME@ALIAS or NAME@NUMBER."""
    signers: Path
    """File of the allowed signers; read each time, so that a removed signer is refused at once."""

    def resolve(self) -> Version:
        """The version that the reference names now; raises RegistryError."""
        with Registry.open(self.url) as registry:
            return registry.resolve(self.reference)

    def verify(self, version: Version, digests: FileDigests | None = None) -> None:
        """Raise SecateurError unless the version's files are intact and signed by an allowed signer."""
        rules.verify(version, Signers.read(self.signers), digests)


class Follower:
    """Loads each new version of a reference; `load` makes a model from an artifact's directory and a name."""

    def __init__(self, source: SignedReference, load: Callable[[Path, str], Model], version: Version) -> None:
        self.version = version
        """The latest version that the reference named, whether it could be served or not."""
        self._source = source
        self._load = load
        self._loaded = {version.name: version}
        self._unreachable = False

    @classmethod
    def open(
        cls, source: SignedReference, load: Callable[[Path, str], Model], digests: FileDigests | None = None
    ) -> Self:
        """Begin at the current version, verified but not loaded; raises RegistryError or ArtifactError.

        `digests` remembers the digests of its files.
        """
        version = source.resolve()
        source.verify(version, digests)
        return cls(source, load, version)

    def next(self) -> Model | None:
        """The loaded model of a new version, or None if the reference is unchanged or cannot be served."""
        try:
            found = self._source.resolve()
        except Exception as error:  # following must go on
            if not self._unreachable:
                logger.error("%s; the old version stays", reason(error))
            self._unreachable = True
            return None
        self._unreachable = False
        if found.address == self.version.address:
            return None
        self.version = found  # if it fails, it is not tried again until the alias moves
        try:
            self._source.verify(found)
            model = self._load(found.path, found.name)
            self.confirm(model.lineage)
            self._loaded[found.name] = found
            return model
        except Exception as error:  # whatever failed, the running model stays
            logger.error("%s cannot be served: %s; the old version stays", found.name, reason(error))
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
