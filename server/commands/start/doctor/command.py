"""`secateur doctor [CONFIG.toml] [--url URL]`: checks machine, settings and proxy, and says what to do."""

import argparse
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from server.command_line import Parser
from server.commands.start.doctor.finding import Finding, findings, printed
from server.commands.start.talk import KEY, Service
from server.config import load
from server.errors import ConfigError


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur doctor",
        description="Check the machine, the files, models, stores and ports of a server's settings, and whether a "
        "proxy streams; say what to do. Changes nothing. Exit code 1 if a check failed.",
    )
    options.add_argument("config", type=Path, nargs="?", metavar="CONFIG.toml", help="the server's settings")
    options.add_argument("--url", help="a running server's public address, to stream a reply through its proxies")
    options.add_argument("--key", help=f"an API key for --url (default: the environment variable {KEY})")
    options.add_argument("--skill", metavar="NAME", help="the skill to ask at --url (default: the key's first)")
    options.add_argument("--json", action="store_true", help="print the findings as a JSON array")
    return options


def main(argv: Sequence[str]) -> int:
    """Print the findings; returns 1 if one failed, else 0."""
    arguments = parser().parse_args(argv)
    found = printed(examine(arguments), as_json=arguments.json)
    return int(any(finding.state == "failed" for finding in found))


def examine(arguments: argparse.Namespace) -> Iterator[Finding]:
    """Every finding, in the order of the checks."""
    from server.commands.start.doctor.machine import machine

    yield from findings("machine", machine)
    if arguments.config is not None:
        yield from findings("settings", lambda: _settings(arguments.config))
    if arguments.url:
        yield from findings("stream", lambda: _stream(arguments))


def _settings(path: Path) -> Iterator[Finding]:
    from server.commands.start.doctor.settings import settings

    config = load(path)
    yield Finding("settings", "ok", f"{path} is valid")
    yield from settings(config)


def _stream(arguments: argparse.Namespace) -> Iterator[Finding]:
    from server.commands.start.doctor.stream import stream

    key = arguments.key or os.environ.get(KEY, "")
    if not key:
        raise ConfigError(f"asking {arguments.url} needs an API key: --key KEY, or {KEY} in the environment")
    service = Service(arguments.url, key)
    yield from stream(service, arguments.skill or service.skills()[0])
