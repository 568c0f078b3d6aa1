"""Opens the models that skills name, directories or versions of the registry: trusted, then read, then loaded."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct

from server.artifact.checkpoint.lineage import address
from server.artifact.signing import envelope
from server.artifact.signing.keys import Signers
from server.config import Config, registered
from server.engine.choice import Choice
from server.errors import ArtifactError, ConfigError
from server.models.follow import Follower, Source
from server.models.rollout import Answering, Engine, Model
from server.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from server.artifact.checkpoint.reader import Artifact


class Opened(Struct, frozen=True):
    """A model that may be loaded; `name` is what labels call it."""

    name: str
    artifact: "Artifact"
    tokenizer: Tokenizer
    follower: Follower | None = None


class Loader:
    """Makes models of what skills call them, as the configuration says."""

    def __init__(self, config: Config) -> None:
        self._config = config
        if config.signers:
            Signers.read(config.signers)  # a damaged file is told before any model is read

    def open(self, reference: str) -> Opened:
        """The artifact of that reference; raises RegistryError or ArtifactError for what cannot be trusted or chat."""
        path, name, follower = Path(reference), Path(reference).resolve().name, None
        version, signers, signed = registered(reference), self._config.signers, None
        if version is not None:
            if signers is None:
                raise ConfigError(f"{reference}: a model of the registry must be signed: name the file of `signers`")
            follower = Follower(Source(self._config.registry, version, signers), self._load)
            first = follower.first()
            path, name = first.path, first.name
        elif signers is not None:
            signed = envelope.signed_record(path, Signers.read(signers))
        artifact, tokenizer = open_model(path)
        if follower is not None:
            follower.confirm(artifact.lineage)
        if signed is not None and address(artifact.lineage) != address(signed):
            raise ArtifactError(f"{path} was exchanged while it was loaded: try again")
        return Opened(name, artifact, tokenizer, follower)

    def load(self, opened: Opened) -> Answering:
        """A model ready to answer, but for its thread, and who says what follows it."""
        engine, choices = load_engine(self._config, opened.artifact)
        model = Model(opened.name, engine, opened.tokenizer, opened.artifact.lineage, choices)
        return Answering(model, opened.follower)

    def _load(self, path: Path, name: str) -> Model:
        artifact, tokenizer = open_model(path)
        return self.load(Opened(name, artifact, tokenizer)).model


def open_model(path: Path) -> "tuple[Artifact, Tokenizer]":
    """The artifact and its tokenizer; raises ArtifactError for what cannot chat."""
    from server.artifact.checkpoint.reader import (
        Artifact,  # late: torch takes seconds, and a mistake in TOML is told at once
    )

    artifact = Artifact.open(path)
    tokenizer = Tokenizer.load(path)
    tokenizer.chat([{"role": "user", "content": "Hello"}])  # a model without a chat template is refused here
    return artifact, tokenizer


def load_engine(config: Config, artifact: "Artifact") -> tuple[Engine, Sequence[Choice]]:
    """The engine with the model loaded, and what was chosen for it."""
    from server.engine import engine
    from server.engine.runners import Options
    from server.engine.runners.choosing import load_runner
    from server.engine.speculation import choose_look_up

    options = Options(
        slots=config.slots,
        context=config.context,
        batch_tokens=config.batch_tokens,
        key_bits=config.key_bits,
        threads=config.threads,
    )
    runner = load_runner(artifact, config.runner, options)
    look_up, choice = choose_look_up(config.look_up, runner.exact_rows)
    made = engine.Engine(
        runner,
        slots=config.slots,
        context=config.context,
        batch_tokens=config.batch_tokens,
        max_waiting=config.max_waiting,
        look_up=look_up,
    )
    return made, (*runner.choices, made.sampler.choice, choice)


def check_names(names: Mapping[str, str]) -> None:
    """Raise ConfigError where two directories would be one model in labels and in the ledger; `names` by reference."""
    taken: dict[str, str] = {}
    for reference, name in names.items():
        other = taken.setdefault(name, reference)
        # Two aliases of the registry may well stand at one version, and are told apart again when one of them moves.
        if other != reference and (registered(reference) is None or registered(other) is None):
            raise ConfigError(
                f"the models {other!r} and {reference!r} would both be called {name!r} in metrics and in the ledger: "
                "rename a directory, or name one model in one way"
            )
