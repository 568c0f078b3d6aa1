"""The revisions of the server that `--server` names."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from server.config import Config, load
from server.errors import ConfigError
from server.models.reload import open_revisions
from server.skills.revisions.store import Revisions


def add_server(action: argparse.ArgumentParser) -> None:
    """The option `--server`."""
    action.add_argument(
        "--server", type=Path, required=True, metavar="SERVER.toml", help="the settings of the server that has them"
    )


@contextmanager
def revisions_of(path: Path) -> Iterator[tuple[Config, Revisions]]:
    """The server's settings and its revisions; raises ConfigError if it has none."""
    config = load(path)
    if config.skill_revisions == "off":
        raise ConfigError(f'{path}: this server serves files: set skill_revisions = "read" or "edit"')
    revisions = open_revisions(config)
    try:
        yield config, revisions
    finally:
        revisions.close()


def named(revision: str) -> tuple[str, int | Literal["published", "draft"]]:
    """The skill and the number of NAME@NUMBER, NAME@published or NAME@draft; raises ConfigError."""
    name, _, number = revision.rpartition("@")
    if name and number == "published":
        return name, "published"
    if name and number == "draft":
        return name, "draft"
    if not name or not number.isdigit():
        raise ConfigError(f"{revision!r} is no revision: write NAME@3, NAME@published or NAME@draft")
    return name, int(number)
