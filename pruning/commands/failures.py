"""Failures of a long run as one sentence and an exit code instead of a traceback."""

import errno
import re
import sys
from collections.abc import Callable

from server.errors import SecateurError

INTERRUPTED = 130


def exit_code(run: Callable[[], int]) -> int:
    """The exit code of `run`: its own, 2 after an error that the user can fix, or 130 after Ctrl-C.

    Reports SecateurError, OSError and lack of memory; anything else is a bug and is raised.
    """
    try:
        return run()
    except SecateurError as error:
        return _fail(error.message)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
        return _fail("the disk is full: free some space and run the same command again to resume")
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError for lack of memory
        if not isinstance(error, MemoryError) and not re.search("can't allocate memory|out of memory", str(error)):
            raise
        return _fail("out of memory: choose a smaller batch, length or rank, or a machine with more memory")
    except KeyboardInterrupt:
        print("\nInterrupted: run the same command again to resume.", file=sys.stderr)
        return INTERRUPTED


def _fail(sentence: str) -> int:
    """Print the sentence; returns the exit code for it."""
    print(f"secateur: {sentence}", file=sys.stderr)
    return 2
