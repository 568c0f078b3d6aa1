"""`python -m tests.exams.servers.jumping_server FOLDER clock=FILE [SETTING=VALUE ...]`: the exam server, clock off.

Its wall clock is offset by the seconds in the file, read at each call; its monotonic clock is not.
"""

import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path


def shifted(file: Path, real: Callable[[], float]) -> Callable[[], float]:
    """The clock `real`, offset by the file's seconds."""
    return lambda: real() + int(file.read_text())


if __name__ == "__main__":
    settings = dict(pair.split("=", 1) for pair in sys.argv[2:])
    time.time = shifted(Path(settings.pop("clock")), time.time)
    import_module("tests.exams.servers.exam_server").main(
        Path(sys.argv[1]), settings
    )  # imported now: some modules bind the clock at import
