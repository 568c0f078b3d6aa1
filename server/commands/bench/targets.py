"""Opens the two servers of a comparison: at an address, or an artifact served for the time of it."""

import argparse
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from server.artifact.checkpoint.lineage import FILE
from server.commands.bench.client import Server
from server.commands.bench.compare import Target
from server.commands.start.talk import KEY as KEY_VARIABLE
from server.commands.start.talk import Service
from server.errors import ConfigError

KEY = "sk-bench"
SKILL = f"""
name = "bench"
system = "You are a helpful assistant."
keys = ["{hashlib.sha256(KEY.encode()).hexdigest()}"]
max_tokens = 1024
"""


@contextmanager
def opened(arguments: argparse.Namespace) -> Iterator[tuple[Target, Target]]:
    """Both servers of the command line; raises ConfigError for a missing key or model."""
    keys, models = _both("--key-file", arguments.key_file or ()), _both("--model", arguments.model or ())
    with ExitStack() as stack:
        targets = [
            stack.enter_context(_served(Path(place))) if "://" not in place else _at(place, key, model)
            for place, key, model in zip(arguments.servers, keys, models, strict=True)
        ]
        yield targets[0], targets[1]


def _both(option: str, given: Sequence[str]) -> tuple[str | None, str | None]:
    """The values of a repeatable option for both servers: one holds for both."""
    if len(given) > 2:
        raise ConfigError(f"{option} is given {len(given)} times, and there are two servers: give it once or twice")
    return (given[0], given[-1]) if given else (None, None)


def _at(url: str, key_file: str | None, model: str | None) -> Target:
    """The server at `url`, and its first model unless one is named."""
    service = Service(url, _key(key_file))
    found = model or next(iter(service.skills()), None)
    if found is None:
        raise ConfigError(f"{url} lists no model: name one with --model")
    return Target(service, found)


def _key(path: str | None) -> str:
    """The key in a file, else in the environment; empty for servers that need none."""
    if path is None:
        return os.environ.get(KEY_VARIABLE, "")
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None


@contextmanager
def _served(artifact: Path) -> Iterator[Target]:
    """The artifact, served by a process of its own on a free port."""
    if not (artifact / FILE).exists():
        raise ConfigError(f"{artifact} is neither a server's address, such as http://host:8000, nor an artifact")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "skill.toml").write_text(SKILL)
        with Server(artifact, folder) as server:
            yield Target(Service(f"http://127.0.0.1:{server.port}", KEY), "bench")
