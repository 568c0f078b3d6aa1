"""Runs readers in a child process with limits of memory and time, so that a document cannot end the build."""

import os
import select
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self

import msgspec

from server.errors import KnowledgeError
from server.knowledge.passages import Document
from server.knowledge.readers.child import Answer, Request

PATIENCE = 4
"""Seconds of waiting for each second of computation that a document may take: the machine may be busy."""
STARTING = 60
"""Seconds that the child may take to import its libraries."""
CHUNK = 1 << 20


class Unreadable(Exception):
    """A document that cannot be read; the text says why."""


class Reading:
    """Reads documents one at a time; a context manager that ends the child."""

    def __init__(self, *, megabytes: int, seconds: int) -> None:
        self._megabytes, self._seconds = megabytes, seconds
        self._child: subprocess.Popen[bytes] | None = None
        self._unread = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def read(self, content: bytes, kind: str, name: str, encoding: str = "") -> tuple[Document, ...]:
        """The documents in `content`; raises Unreadable."""
        child = self._running()
        request = Request(kind, name, encoding, len(content), self._seconds)
        try:
            assert child.stdin is not None
            child.stdin.write(msgspec.json.encode(request) + b"\n" + content)
            child.stdin.flush()
            answer = msgspec.json.decode(self._line(child), type=Answer)
        except TimeoutError:
            self._end()
            raise Unreadable(f"reading it takes longer than {self._seconds * PATIENCE} seconds") from None
        except (OSError, EOFError, msgspec.DecodeError):
            raise Unreadable(self._death()) from None
        if answer.error:
            raise Unreadable(answer.error)
        return answer.documents

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is None or self._child.poll() is not None:
            self._end()
            paths = os.pathsep.join(path or os.getcwd() for path in sys.path)
            kept = {name: value for name, value in os.environ.items() if name in ("LANG", "LC_ALL", "TZ", "HOME")}
            self._child = subprocess.Popen(
                [sys.executable, "-P", "-m", "server.knowledge.readers.child", str(self._megabytes)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=kept | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            )
        return self._child

    def _line(self, child: subprocess.Popen[bytes]) -> bytes:
        """The next line of the child; raises TimeoutError or EOFError."""
        assert child.stdout is not None
        descriptor = child.stdout.fileno()
        parts = [self._unread]
        while b"\n" not in parts[-1]:
            ready, _, _ = select.select([descriptor], [], [], self._seconds * PATIENCE + STARTING)
            if not ready:
                raise TimeoutError
            part = os.read(descriptor, CHUNK)
            if not part:
                raise EOFError
            parts.append(part)
        line, _, self._unread = b"".join(parts).partition(b"\n")
        return line

    def _death(self) -> str:
        """Why the child ended, as a sentence."""
        child = self._child
        assert child is not None
        with suppress(subprocess.TimeoutExpired):
            child.wait(5)
        code = child.returncode
        self._end()
        if code == 1:
            raise KnowledgeError(
                "the reader does not start: install the extra with `pip install 'secateur[knowledge]'`"
            )
        if code == -24:  # SIGXCPU
            return f"reading it takes more than {self._seconds} seconds of computation"
        return f"reading it ended the reader (exit code {code}): it needs too much memory, or is damaged"

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.communicate()
            self._child, self._unread = None, b""
