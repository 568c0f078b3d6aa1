"""Runs `secateur prune` in a process that a test kills; a fork server imports torch once for all such processes."""

import os
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path

from pruning.commands.__main__ import main

FORKSERVER = get_context("forkserver")
FORKSERVER.set_forkserver_preload(["pruning.run.pipeline", "transformers.models.llama.modeling_llama"])
PATIENCE = 120.0
"""Seconds until a run that is never `ready` fails the test."""


def start(arguments: list[str], output: Path, errors: Path) -> BaseProcess:
    """Start the command; it and its children write standard output and error to these files."""
    process = FORKSERVER.Process(target=_run, args=(arguments, output, errors))
    process.start()
    return process


def wait_until(ready: Callable[[], bool], process: BaseProcess, errors: Path) -> None:
    """Wait for `ready` while `process` runs; fails with what it wrote to `errors` if it ends before."""
    deadline = time.monotonic() + PATIENCE
    while not ready():
        assert process.is_alive(), errors.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.0005)


def kill_when(ready: Callable[[], bool], arguments: list[str], errors: Path) -> None:
    """Start the command and send it SIGKILL once `ready`."""
    process = start(arguments, errors.with_name("output.txt"), errors)
    wait_until(ready, process, errors)
    process.kill()
    process.join()


def _run(arguments: list[str], output: Path, errors: Path) -> None:
    for file, descriptor in ((output, 1), (errors, 2)):
        with file.open("w") as opened:
            os.dup2(opened.fileno(), descriptor)
    sys.exit(main(arguments))
