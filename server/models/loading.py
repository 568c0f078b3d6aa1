"""Loads the models that skills name, from directories or the registry: verify signature and gates, read, then load."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace

from server.artifact.checkpoint.lineage import Lineage, address
from server.artifact.registry.seen import LastSeen
from server.artifact.signing import envelope
from server.artifact.signing.keys import Signers
from server.config import Config, registered
from server.engine.choice import Choice
from server.errors import ArtifactError, ConfigError
from server.models.encoders import Encoders
from server.models.follow import Follower, SignedReference
from server.models.prefixes import choose_prefixes
from server.models.remote import RemoteModel, is_remote, read_remote, remote_engine
from server.models.rollout import CurrentModel, Engine, Model
from server.storage.digests import FileDigests
from server.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from server.artifact.checkpoint.reader import Artifact

ALLOW_FAILED_GATE = "--allow-failed-gate"
logger = logging.getLogger(__name__)


class Opened(Struct, frozen=True):
    """A verified artifact, its weights not loaded yet; `name` is its label in metrics and the ledger."""

    name: str
    artifact: "Artifact"
    tokenizer: Tokenizer
    follower: Follower[Model] | None = None
    choices: Sequence[Choice] = ()
    """What was decided about serving it."""
    remote: RemoteModel | None = None
    """Where it runs, if not here."""


class Loader:
    """Loads models by reference: a directory, `registry:NAME@ALIAS`, or the TOML file of a remote model.

    `allow_failed_gate` serves signed directories whose own record failed a gate.
    """

    def __init__(self, config: Config, *, allow_failed_gate: bool = False) -> None:
        self._config = config
        self._allow_failed_gate = allow_failed_gate
        self._seen = LastSeen(config.last_seen_file)
        self.encoders = Encoders()
        """The encoders of skills that embed."""
        if config.signers:
            Signers.read(config.signers)  # report a damaged file before any model is read

    def open(self, reference: str) -> Opened:
        """Verify and read an artifact and its tokenizer, without weights.

        Without signers, the weights are compared with the last step of the record. Raises RegistryError or
        ArtifactError if the artifact is not trusted, failed its gates, is damaged, or is no chat model.
        """
        if is_remote(reference):
            return self._open_remote(Path(reference))
        path, name, follower = Path(reference), Path(reference).resolve().name, None
        version, signers, signed = registered(reference), self._config.signers, None
        digests = FileDigests()  # so that the signature and the record are verified in one reading
        if version is not None:
            if signers is None:
                raise ConfigError(f"{reference}: a model of the registry must be signed: name the file of `signers`")
            source = SignedReference(self._config.registry, version, signers, self._seen)
            follower = Follower.open(source, self._load, digests)
            path, name = follower.version.path, follower.version.name
        elif signers is not None:
            signed = envelope.signed_record(path, Signers.read(signers), digests)
        artifact, tokenizer = open_model(path, digests, self._config.chat_template)
        if follower is not None:
            follower.confirm(artifact.lineage)
        if signed is not None and address(artifact.lineage) != address(signed):
            raise ArtifactError(f"{path} was exchanged while it was loaded: try again")
        if signers is None:
            artifact.check_last_link()
        choices = [*(self._gates(path, signed) if signed else ()), *self._template(tokenizer)]
        return Opened(name, artifact, tokenizer, follower, choices)

    def load(self, opened: Opened) -> CurrentModel:
        """Load the weights into an engine, or prepare a remote one; it is not started yet."""
        if opened.remote is not None:
            engine, choices = load_remote(opened.remote, opened.artifact, opened.tokenizer)
        else:
            engine, choices = load_engine(self._config, opened.artifact)
            choices = (*choices, structured_output(opened.tokenizer))
        choices = (*opened.choices, *choices)
        model = Model(opened.name, engine, opened.tokenizer, opened.artifact.lineage, choices)
        return CurrentModel(model, opened.follower)

    def _open_remote(self, path: Path) -> Opened:
        """The artifact of a remote model, verified as any other; its name is the file's."""
        remote = read_remote(path)
        if registered(remote.artifact) is not None or is_remote(remote.artifact):
            raise ConfigError(
                f"{path}: a remote model's artifact is a directory: its backends do not follow the registry "
                "- at `$.artifact`"
            )
        return replace(self.open(remote.artifact), name=path.stem, remote=remote)

    def _gates(self, path: Path, lineage: Lineage) -> Sequence[Choice]:
        """Raise ArtifactError if the artifact's record failed a gate; if that is allowed, warn and return a choice."""
        failed = [gate.task for gate in (lineage.evaluation.gates if lineage.evaluation else ()) if not gate.passed]
        if not failed:
            return ()
        what = f"failed its gate {', '.join(sorted(failed))}"
        if not self._allow_failed_gate:
            raise ArtifactError(
                f"{path} {what}, says its own record: serve another one, promote it in the registry with a signed "
                f"override, or start with {ALLOW_FAILED_GATE}"
            )
        logger.warning("%s %s and is served nevertheless: %s", path, what, ALLOW_FAILED_GATE)
        return (Choice("gates", what, ALLOW_FAILED_GATE),)

    def _template(self, tokenizer: Tokenizer) -> Sequence[Choice]:
        """Where the chat template comes from, if the settings give one."""
        if (given := self._config.chat_template) is None:
            return ()
        if tokenizer.given_template:
            return (Choice("chat template", str(given), "the model has none of its own"),)
        return (Choice("chat template", "the model's own", "`chat_template` is for models that have none"),)

    def _load(self, path: Path, name: str) -> Model:
        artifact, tokenizer = open_model(path, template=self._config.chat_template)
        return self.load(Opened(name, artifact, tokenizer)).model


def open_model(
    path: Path, digests: FileDigests | None = None, template: Path | None = None
) -> "tuple[Artifact, Tokenizer]":
    """The artifact and its tokenizer; raises ArtifactError for a damaged artifact or one without a chat template.

    `template` is used if the model has none.
    """
    from server.artifact.checkpoint.reader import Artifact  # late: torch takes seconds, TOML errors should not

    artifact = Artifact.open(path, digests=digests)
    tokenizer = Tokenizer.load(path, template)
    tokenizer.chat([{"role": "user", "content": "Hello"}])  # raises without a chat template
    return artifact, tokenizer


def load_engine(config: Config, artifact: "Artifact") -> tuple[Engine, Sequence[Choice]]:
    """An engine with the weights loaded, and the automatic choices of runner, kernels and sampler."""
    from server.engine import engine
    from server.engine.runners import Options
    from server.engine.runners.choosing import load_runner
    from server.engine.scheduling.speculation import choose_look_up

    options = Options(
        slots=config.slots,
        context=config.context,
        batch_tokens=config.batch_tokens,
        key_bits=config.key_bits,
        input_bits=config.input_bits,
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
    made.prefixes, kept = choose_prefixes(config.prefix_cache, runner, artifact.lineage)
    return made, (*runner.choices, made.sampler.choice, choice, kept)


def load_remote(remote: RemoteModel, artifact: "Artifact", tokenizer: Tokenizer) -> tuple[Engine, Sequence[Choice]]:
    """An engine that sends token ids to the model's backends."""
    return remote_engine(remote, int(artifact.config.get("vocab_size", tokenizer.vocabulary)))


def structured_output(tokenizer: Tokenizer) -> Choice:
    """Whether replies can be constrained by grammars, and why; prepares the tokenizer for it."""
    reason = tokenizer.grammars.unsupported()
    if reason is not None:
        return Choice("structured output", "off", f"this tokenizer cannot be constrained: {reason}")
    return Choice("structured output", "on", "the tokenizer's tokens are known to llguidance")


def check_names(names: Mapping[str, str]) -> None:
    """Raise ConfigError if two models would have one name in metrics and the ledger; `names` maps references."""
    taken: dict[str, str] = {}
    for reference, name in names.items():
        other = taken.setdefault(name, reference)
        # Two registry aliases may name one version for a while.
        if other != reference and (registered(reference) is None or registered(other) is None):
            raise ConfigError(
                f"the models {other!r} and {reference!r} would both be called {name!r} in metrics and in the ledger: "
                "rename a directory, or name one model in one way"
            )
