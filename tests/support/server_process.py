"""The server with a fake runner in a process of its own, which a test may kill."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    process: "subprocess.Popen[str]"
    url: str


@contextmanager
def process(folder: Path, *settings: str, delay: float = 0.005, files: str = "") -> Iterator[Process]:
    """Run the server on `folder`; `files` are arguments of `ulimit`."""
    limited = ["sh", "-c", f'ulimit {files} && exec "$@"', "-"] if files else []
    command = [*limited, sys.executable, "-m", "tests.support.fake_server", str(folder), str(delay), *settings]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            urls = [
                line.split()[1]
                for line in takewhile(lambda line: "Ctrl-C" not in line, server.stdout)
                if line[:3] == "API"
            ]
            yield Process(server, urls[0].removesuffix("/v1"))
        finally:
            server.kill()
