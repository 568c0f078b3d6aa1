"""`python -m tests.exams.servers.watched_server FOLDER ...`: the exam server, logging connections and children."""

import runpy
import sys
from typing import Any

WATCHED = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "subprocess.Popen", "os.system", "os.exec"}


def told(event: str, arguments: tuple[Any, ...]) -> None:
    """Log one line for each audit event."""
    if event in WATCHED:
        print("asked", event, arguments[-1], flush=True)


if __name__ == "__main__":
    sys.addaudithook(told)
    runpy.run_module("tests.exams.servers.exam_server", run_name="__main__")
