"""`secateur serve CONFIG.toml`: opens what the configuration names, says what was chosen and why, and serves.

Whatever cannot be used is refused before the first listener answers.
"""

import argparse
import logging
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec.structs import replace

from server import logs
from server.api_keys import Keys
from server.app import Parts
from server.config import Config, load
from server.engine.choice import Choice
from server.follow import Follower, Source
from server.listeners import run
from server.metering.database import POSTGRES
from server.metering.ledger import Ledger
from server.reload import load_skills
from server.rollout import Engine, Model
from server.signing import envelope
from server.signing.keys import Signers
from server.skills import Skills
from server.tokenizer import Tokenizer

if TYPE_CHECKING:
    from server.checkpoint.reader import Artifact


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; returns 0 after an orderly end."""
    parser = argparse.ArgumentParser(prog="secateur serve", description="Serve the skills of a configuration file.")
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--metrics-compat", choices=["none", "vllm"], help="overrides the setting `metrics_compat`")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    arguments = parser.parse_args(argv)
    config = load(arguments.config)
    logs.configure(config.log, config.log_level)
    run(prepare(replace(config, metrics_compat=arguments.metrics_compat or config.metrics_compat)))
    return 0


def prepare(config: Config) -> Parts:
    """Open everything that `config` names; raises one of server.errors for what cannot be used."""
    skills = Skills(load_skills(config), Keys(config.keys))
    signers = Signers.read(config.signers) if config.signers else None
    follower = None
    path, name = Path(config.model), Path(config.model).resolve().name
    if config.reference is not None and signers is not None:
        source = Source(config.registry, config.reference, signers)
        follower = Follower(source, skills.names, partial(load_model, config))
        version = follower.first()
        path, name = version.path, version.name
    elif signers is not None:
        envelope.verify(path, signers)
    artifact, tokenizer = open_model(path)
    if follower is not None:
        follower.confirm(artifact.lineage)
    ledger = Ledger(config.ledger, instance=instance_of(config))
    engine, choices = load_engine(config, artifact)
    return Parts(config, skills, engine, tokenizer, ledger, name, artifact.lineage, choices, follower)


def instance_of(config: Config) -> str:
    """Whose rows are ours: an SQLite file has one writer, who needs no name."""
    return (config.instance or socket.gethostname()) if POSTGRES.match(config.ledger) else ""


def open_model(path: Path) -> "tuple[Artifact, Tokenizer]":
    """The artifact and its tokenizer; raises ArtifactError for what cannot chat."""
    from server.checkpoint.reader import Artifact  # late: torch takes seconds, and a mistake in TOML is told at once

    artifact = Artifact.open(path)
    tokenizer = Tokenizer.load(path)
    tokenizer.chat([{"role": "user", "content": "Hello"}])  # a model without a chat template is refused here
    return artifact, tokenizer


def load_model(config: Config, path: Path, name: str) -> Model:
    """A model ready to answer, but for its thread."""
    artifact, tokenizer = open_model(path)
    engine, choices = load_engine(config, artifact)
    return Model(name, engine, tokenizer, artifact.lineage, choices)


def load_engine(config: Config, artifact: "Artifact") -> tuple[Engine, Sequence[Choice]]:
    """The engine with the model loaded, and what was chosen for it."""
    from server.engine import engine
    from server.engine.runners import Options
    from server.engine.runners.choosing import load_runner

    options = Options(
        slots=config.slots,
        context=config.context,
        batch_tokens=config.batch_tokens,
        key_bits=config.key_bits,
        threads=config.threads,
    )
    runner = load_runner(artifact, config.runner, options)
    made = engine.Engine(
        runner,
        slots=config.slots,
        context=config.context,
        batch_tokens=config.batch_tokens,
        max_waiting=config.max_waiting,
    )
    return made, runner.choices
