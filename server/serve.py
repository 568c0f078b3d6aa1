"""`secateur serve CONFIG.toml`: opens what the configuration names, says what was chosen and why, and serves.

Whatever cannot be used is refused before the first listener answers.
"""

import argparse
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from server.app import Engine, Parts
from server.config import Config, load
from server.engine.choice import Choice
from server.listeners import run
from server.metering.ledger import Ledger
from server.skills import Skills
from server.tokenizer import Tokenizer

if TYPE_CHECKING:
    from server.checkpoint.reader import Artifact


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; returns 0 after an orderly end."""
    parser = argparse.ArgumentParser(prog="secateur serve", description="Serve the skills of a configuration file.")
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    config = load(parser.parse_args(argv).config)
    run(prepare(config))
    return 0


def prepare(config: Config) -> Parts:
    """Open everything that `config` names; raises ConfigError or ArtifactError for what cannot be used."""
    skills = Skills.load(config.skills)
    from server.checkpoint.reader import Artifact  # late: torch takes seconds, and a mistake in TOML is told at once

    artifact = Artifact.open(config.model)
    tokenizer = Tokenizer.load(config.model)
    tokenizer.chat([{"role": "user", "content": "Hello"}])  # a model without a chat template is refused here
    ledger = Ledger(config.ledger)
    engine, choices = load_engine(config, artifact)
    return Parts(config, skills, engine, tokenizer, ledger, config.model.resolve().name, artifact.lineage, choices)


def load_engine(config: Config, artifact: "Artifact") -> tuple[Engine, Sequence[Choice]]:
    """The engine with the model loaded, and what was chosen for it."""
    from server.engine import engine
    from server.engine.runners import transformers_runner

    model = transformers_runner.load(artifact)
    runner = transformers_runner.TransformersRunner(model, slots=config.slots, context=config.context)
    made = engine.Engine(
        runner,
        slots=config.slots,
        context=config.context,
        batch_tokens=config.batch_tokens,
        max_waiting=config.max_waiting,
    )
    return made, runner.choices
