"""Options of the command line."""

import sys
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.serving.servers import Setting


class Options(NamedTuple):
    """The argument parser."""

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
        """Settings of the server called `name`."""
        return Setting(self.artifact, self.cores, self.work / name, threads or self.threads, slots, context)

    def say(self, text: str) -> None:
        """Print progress to standard error."""
        print(text, file=sys.stderr)
