"""`python -m tests.server.fake_server FOLDER DELAY [SETTING=NUMBER ...]`: the real server in a process of its own."""

import sys
from pathlib import Path
from typing import Any

from server.listeners import run
from tests.server.harness import parts, says

if __name__ == "__main__":
    folder, delay, *more = sys.argv[1:]
    settings: dict[str, Any] = {name: int(value) for name, _, value in (pair.partition("=") for pair in more)}
    run(parts(Path(folder), says(Path(folder), "0123456789" * 3, delay=float(delay)), **settings))
