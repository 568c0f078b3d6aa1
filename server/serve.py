"""`secateur serve CONFIG.toml`: opens what the configuration names, says what was chosen and why, and serves.

Whatever cannot be used is refused before the first listener answers.
"""

import argparse
import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from server.app import Apps, Parts, build
from server.checkpoint.reader import Artifact
from server.config import Config, load
from server.engine.engine import Engine
from server.engine.runners.transformers_runner import TransformersRunner
from server.listeners import Listener, address, bind, serve_until_signalled
from server.metering.ledger import Ledger
from server.skills import Skills
from server.tokenizer import Tokenizer


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
    artifact = Artifact.open(config.model)
    ledger = Ledger(config.ledger)
    tokenizer = Tokenizer.load(config.model)
    runner = TransformersRunner(artifact, slots=config.slots, context=config.context)
    engine = Engine(
        runner,
        slots=config.slots,
        context=config.context,
        batch_tokens=config.batch_tokens,
        max_waiting=config.max_waiting,
    )
    name = config.model.resolve().name
    return Parts(config, skills, engine, tokenizer, ledger, name, artifact.lineage, runner.choices)


def run(parts: Parts) -> None:
    """Bind every listener, say where they are, and serve until told to stop."""
    apps, config = build(parts), parts.config
    wanted = [
        ("skills", apps.public, config.host, config.port),
        ("metrics", apps.admin, config.admin_host, config.admin_port),
    ]
    if apps.page is not None and config.page_port is not None:
        wanted.append(("page", apps.page, config.host, config.page_port))
    listeners = {what: Listener(app, bind(host, port)) for what, app, host, port in wanted}
    announce(parts, apps, {what: address(listener.bound) for what, listener in listeners.items()})
    asyncio.run(serve_until_signalled(apps, list(listeners.values()), drain_seconds=config.drain_seconds))


def announce(parts: Parts, apps: Apps, addresses: dict[str, str]) -> None:
    """Print what is served where, and each automatic choice with its reason."""
    print(f"{parts.model}: skills {', '.join(parts.skills.names)}")
    for choice in parts.choices:
        print(f"  {choice.subject}: {choice.kernel} ({choice.reason})")
    print(f"  counting: {parts.tokenizer.encoding_reason}")
    if parts.ledger.recovered:
        print(f"  ledger: {parts.ledger.recovered} replies of a server that died were closed as `recovered`")
    print(f"API      {addresses['skills']}/v1")
    print(f"metrics  {addresses['metrics']}/metrics")
    if apps.page is not None:
        print(f"page     {addresses['page']}/")
    print("Stop with Ctrl-C.", flush=True)
