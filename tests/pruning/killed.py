"""Kills `secateur prune` in its own process; a fork server imports torch once for all such processes."""

import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

from pruning.commands.__main__ import main

FORKSERVER = get_context("forkserver")
FORKSERVER.set_forkserver_preload(["pruning.run.pipeline", "transformers.models.llama.modeling_llama"])
PATIENCE = 120.0
"""Seconds until a run that is never `ready` fails the test."""


def kill_when(ready: Callable[[], bool], arguments: list[str], errors: Path) -> None:
    """Start the command and send it SIGKILL once `ready`; its standard error goes to the file `errors`."""
    process = FORKSERVER.Process(target=_run, args=(arguments, errors))
    process.start()
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.is_alive(), errors.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    process.kill()
    process.join()


def _run(arguments: list[str], errors: Path) -> None:
    with errors.open("w") as sys.stderr:
        sys.exit(main(arguments))
