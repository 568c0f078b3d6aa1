"""The child process that reads documents: bytes in on standard input, documents out, within limits of the kernel.

A request is a JSON line and then as many bytes as it says; an answer is a JSON line with documents or an error.
"""

import os
import resource
import sys
from collections.abc import Sequence
from typing import BinaryIO

import msgspec
from msgspec import Struct

from server.knowledge.passages import Document

MOST_CHARACTERS = 50_000_000
"""Characters of all sections of one document."""


class Request(Struct, frozen=True):
    """What to read; `size` bytes follow."""

    kind: str
    name: str
    encoding: str
    size: int
    seconds: int
    """CPU seconds for this document."""


class Answer(Struct, frozen=True, omit_defaults=True):
    """The documents, or why there are none."""

    documents: tuple[Document, ...] = ()
    error: str = ""


def main(argv: Sequence[str]) -> int:
    """Read documents until standard input ends; `argv` is the memory limit in MB."""
    answers = os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)  # what a library prints is no answer
    os.dup2(null, 2)
    memory = int(argv[0]) << 20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    requests = sys.stdin.buffer
    while line := requests.readline():
        answers.write(msgspec.json.encode(_answer(msgspec.json.decode(line, type=Request), requests)) + b"\n")
        answers.flush()
    return 0


def _answer(request: Request, requests: BinaryIO) -> Answer:
    content = requests.read(request.size)
    used = resource.getrusage(resource.RUSAGE_SELF)
    _, hardest = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(used.ru_utime + used.ru_stime) + request.seconds + 1, hardest))
    try:
        found = _read(content, request)
    except MemoryError:
        return Answer(error="it needs more memory than a document may take")
    except RecursionError:
        return Answer(error="it is nested too deeply")
    except ValueError as error:
        return Answer(error=str(error))
    except ImportError:  # the installation lacks a package, and no document is to blame: end with exit code 1
        raise
    except Exception as error:  # libraries raise anything for a damaged file
        return Answer(error=f"it cannot be read: {type(error).__name__}: {error}"[:500])
    return found


def _read(content: bytes, request: Request) -> Answer:
    if request.kind == "sitemap":
        from server.knowledge.readers import sitemap

        return Answer(tuple(sitemap.read(content)))
    from server.knowledge.readers import formats

    found = formats.read(content, request.kind, request.name, request.encoding)
    size = sum(len(section.text) for document in found for section in document.sections)
    if size > MOST_CHARACTERS:
        return Answer(error=f"it has {size} characters of text, more than {MOST_CHARACTERS}")
    return Answer(tuple(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
