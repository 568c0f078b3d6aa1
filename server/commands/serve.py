"""`secateur serve CONFIG.toml`: opens what the configuration names, says what was chosen and why, and serves.

Whatever cannot be used is refused before the first listener answers.
"""

import argparse
import logging
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from server.config import Config, load
from server.metering.ledger.ledger import Ledger
from server.models.loading import Loader, check_names
from server.models.reload import check_prompts, load_skills
from server.models.rollout import Rollout
from server.skills import api_keys
from server.skills.api_keys import Keys
from server.skills.catalogue import Skills
from server.storage.database import POSTGRES
from server.web import logs
from server.web.app import Parts
from server.web.listeners import bind_all, run

SWITCH_SECONDS = 0.0005
"""So long may one thread keep the interpreter from the engine's, between two passes of some milliseconds each."""


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT; returns 0 after an orderly end, 1 where a model's engine failed."""
    parser = argparse.ArgumentParser(prog="secateur serve", description="Serve the skills of a configuration file.")
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--metrics-compat", choices=["none", "vllm"], help="overrides the setting `metrics_compat`")
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    parser.add_argument("--check", action="store_true", help="read the files and try the ports; load and serve nothing")
    arguments = parser.parse_args(argv)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until there are skills to read again, it must not end the start
    config = load(arguments.config)
    if arguments.check:
        check(config)
        return 0
    logs.configure(config.log, config.log_level)
    sys.setswitchinterval(SWITCH_SECONDS)
    early: list[int] = []  # signals that came while the model was loaded, which may take minutes
    signal.signal(signal.SIGHUP, lambda number, _: early.append(number))
    # The kernel drops a signal of default action that is sent to a container's first process.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    return run(prepare(replace(config, metrics_compat=arguments.metrics_compat or config.metrics_compat)), early)


def check(config: Config) -> None:
    """Read what is written and try every port, so that long work before the start is not in vain; as `prepare`."""
    load_skills(config)
    check_keys(config)
    for bound in bind_all(config).values():
        bound.close()


def prepare(config: Config) -> Parts:
    """Open everything that `config` names; raises one of server.errors for what cannot be used."""
    check_keys(config)
    skills, loader = Skills(load_skills(config), Keys(config.keys)), Loader(config)
    opened = {wanted: loader.open(wanted) for wanted in dict.fromkeys(skill.model or config.model for skill in skills)}
    check_names({wanted: found.name for wanted, found in opened.items()})
    ledger = Ledger(config.ledger, instance=instance_of(config))
    rollout = Rollout({wanted: loader.load(found) for wanted, found in opened.items()}, config.model)
    check_prompts(skills, rollout.of)
    return Parts(config, skills, ledger, rollout, loader)


def check_keys(config: Config) -> None:
    """Refuse files of keys that this user cannot read, or that are damaged: they would let nobody in."""
    for path in (config.keys, config.admin_keys):
        api_keys.check(path)


def instance_of(config: Config) -> str:
    """Whose rows are ours: an SQLite file has one writer, who needs no name."""
    return (config.instance or socket.gethostname()) if POSTGRES.match(config.ledger) else ""
