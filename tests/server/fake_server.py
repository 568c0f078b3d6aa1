"""`python -m tests.server.fake_server FOLDER DELAY [SETTING=NUMBER ...]`: the real server in a process of its own."""

import sys
from pathlib import Path
from typing import Any

from server.listeners import run
from tests.server.harness import parts, says

if __name__ == "__main__":
    folder, delay, *more = sys.argv[1:]
    pairs = (pair.partition("=") for pair in more)
    settings: dict[str, Any] = {name: int(value) if value.isdigit() else value for name, _, value in pairs}
    run(parts(Path(folder), says(Path(folder), "0123456789" * 3, delay=float(delay)), **settings))
