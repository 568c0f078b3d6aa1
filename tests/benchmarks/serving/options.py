"""What is measured and where, as the command line says."""

import sys
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.serving.servers import Setting


class Options(NamedTuple):
    """The command line."""

    artifact: Path
    cores: str
    threads: int
    rounds: int
    seconds: float
    most: int
    work: Path
    peers: Path
    gguf: Path

    def setting(self, name: str, *, threads: int | None = None, slots: int = 8, context: int = 1024) -> Setting:
        """How a server called `name` runs."""
        return Setting(self.artifact, self.cores, self.work / name, threads or self.threads, slots, context)

    def say(self, text: str) -> None:
        """Progress."""
        print(text, file=sys.stderr)
