"""`python -m tests.support.fake_server FOLDER DELAY [SETTING=NUMBER ...]`: the real server with a fake runner."""

import sys
from pathlib import Path
from typing import Any

import msgspec

from server.commands.serve import run
from tests.support.harness import HELP, OTHER, parts, says

if __name__ == "__main__":
    folder, delay, *more = sys.argv[1:]
    pairs = (pair.partition("=") for pair in more)
    settings: dict[str, Any] = {name: int(value) if value.isdigit() else value for name, _, value in pairs}
    # Limits of a visitor would answer most of what an exam sends, and nothing behind them would be tried.
    helper = msgspec.structs.replace(
        HELP, visitor_requests_per_minute=10**6, address_requests_per_minute=10**6, sessions_per_minute=10**6
    )
    runner = says(Path(folder), "0123456789" * 3, delay=float(delay))
    runner.fail_after = settings.pop("fail_after", None)
    sys.exit(run(parts(Path(folder), runner, (helper, OTHER), **settings)))
