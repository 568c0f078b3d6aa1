"""Follows a version of the registry: `registry:NAME@production` is looked up now and then, checked, and loaded.

A version that cannot be served leaves the one before where it is, and the log says why.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from server.artifact.checkpoint.lineage import Lineage, address
from server.artifact.registry import rules
from server.artifact.registry.store import Registry, Version
from server.artifact.signing.keys import Signers
from server.errors import RegistryError, SecateurError, reason
from server.models.rollout import Model

logger = logging.getLogger(__name__)


class Source(NamedTuple):
    """Where versions come from and who must have signed them."""

    url: str
    reference: str
    """NAME@ALIAS or NAME@NUMBER."""
    signers: Path
    """The file of who may sign, read each time, so that a line that was taken out counts at once."""

    def verify(self, version: Version) -> None:
        """Raise SecateurError unless the version is whole and signed by one of those."""
        rules.verify(version, Signers.read(self.signers))


class Follower:
    """Remembers which version is served; `load` makes a model of an artifact's directory and a name for it."""

    def __init__(self, source: Source, load: Callable[[Path, str], Model]) -> None:
        self._source = source
        self._load = load
        self._seen: Version | None = None
        self._handed: dict[str, Version] = {}
        self._unreachable = False

    def first(self) -> Version:
        """The version to begin with; raises RegistryError or ArtifactError where it cannot be trusted."""
        self._seen = self._look()
        self._source.verify(self._seen)
        self._handed[self._seen.name] = self._seen
        return self._seen

    def next(self) -> Model | None:
        """Another version's model, loaded, if the registry names another one since the last call."""
        assert self._seen is not None, "`first` comes first"
        try:
            found = self._look()
        except Exception as error:  # nothing may end the following
            if not self._unreachable:
                logger.error("%s; what was served before goes on", reason(error))
            self._unreachable = True
            return None
        self._unreachable = False
        if found.address == self._seen.address:
            return None
        self._seen = found  # one that fails is not tried again until the alias moves
        try:
            self._source.verify(found)
            model = self._load(found.path, found.name)
            self.confirm(model.lineage)
            self._handed[found.name] = found
            return model
        except Exception as error:  # whatever it was, the model that runs goes on
            logger.error("%s cannot be served: %s; what was served before goes on", found.name, reason(error))
            return None

    def confirm(self, lineage: Lineage) -> None:
        """Raise RegistryError unless what was loaded is what was looked up: the files may have changed in between."""
        assert self._seen is not None, "`first` comes first"
        if address(lineage) != self._seen.address:
            raise RegistryError(f"{self._seen.path} was exchanged while {self._seen.name} was loaded")

    def began(self, skills: Sequence[str], name: str) -> None:
        """Record that the version of this `name`, which was handed out, answers these skills now."""
        try:
            with Registry.open(self._source.url) as registry:
                registry.bind(skills, self._handed[name])
        except SecateurError as error:
            logger.warning("that %s answers %s is not recorded: %s", name, ", ".join(skills), error)

    def _look(self) -> Version:
        with Registry.open(self._source.url) as registry:
            return registry.resolve(self._source.reference)
