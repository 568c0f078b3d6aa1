"""Opens the knowledge that skills name, from directories or the registry, and follows its production alias."""

import threading
from collections.abc import Sequence
from pathlib import Path

from server.artifact.checkpoint.lineage import address
from server.artifact.registry.seen import LastSeen
from server.artifact.signing import envelope
from server.artifact.signing.keys import Signers
from server.config import Config, registered
from server.errors import ArtifactError, ConfigError
from server.knowledge.record import EncoderRecord
from server.knowledge.search import Encoder, Knowledge, load_encoder
from server.models.follow import Follower, SignedReference
from server.storage.digests import FileDigests


class CurrentKnowledge:
    """A knowledge that answers now; `refresh` replaces it, and a search that has begun ends in the old version."""

    def __init__(self, name: str, knowledge: Knowledge, follower: Follower[Knowledge] | None = None) -> None:
        self.name = name
        """Its label in metrics and the ledger: NAME@NUMBER, or the directory's name."""
        self.knowledge = knowledge
        self._follower = follower

    def refresh(self) -> bool:
        """Whether the reference names a newer version, which answers from now on; blocks for seconds while it loads.

        A version that cannot be served is logged, and the old one stays.
        """
        found = self._follower.next() if self._follower is not None else None
        if found is None or self._follower is None:
            return False
        self.knowledge, self.name = found, self._follower.version.name
        return True

    @property
    def refusal(self) -> tuple[str, str] | None:
        """The version that the last `refresh` refused, and why."""
        return self._follower.refusal if self._follower is not None else None

    def began(self, skills: Sequence[str]) -> None:
        """Record in the registry that these skills answer from this version."""
        if self._follower is not None:
            self._follower.began(skills, self.name)


class KnowledgeLoader:
    """Opens knowledge by reference, a directory or `registry:NAME@ALIAS`; one encoder serves all that name it."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._seen = LastSeen(config.last_seen_file)
        self._encoders: dict[str, Encoder] = {}
        self._loading = threading.Lock()

    def open(self, reference: str) -> CurrentKnowledge:
        """Verify signature, gates and files, then open; raises ConfigError, RegistryError or ArtifactError.

        A knowledge of the registry must be signed; a directory must be where the server has `signers`.
        """
        version, signers = registered(reference), self._config.signers
        digests = FileDigests()
        if version is None:
            path = Path(reference)
            signed = envelope.signed_record(path, Signers.read(signers), digests) if signers is not None else None
            knowledge = self._load(path, path.name, digests)
            if signed is not None and address(signed) != address(knowledge.lineage):
                raise ArtifactError(f"{path} was exchanged while it was loaded: try again")
            return CurrentKnowledge(path.resolve().name, knowledge)
        if signers is None:
            raise ConfigError(f"{reference}: a knowledge of the registry must be signed: name the file of `signers`")
        source = SignedReference(self._config.registry, version, signers, self._seen)
        follower = Follower.open(source, self._load, digests)
        knowledge = self._load(follower.version.path, follower.version.name, digests)
        follower.confirm(knowledge.lineage)
        return CurrentKnowledge(follower.version.name, knowledge, follower)

    def _load(self, path: Path, name: str, digests: FileDigests | None = None) -> Knowledge:
        return Knowledge.open(path, encoder=self._encoder, digests=digests)

    def _encoder(self, wanted: EncoderRecord) -> Encoder:
        """The encoder of a manifest, loaded once."""
        with self._loading:
            if wanted.digest not in self._encoders:
                self._encoders[wanted.digest] = load_encoder(wanted)
            return self._encoders[wanted.digest]
