"""Failures of a long run as one sentence and an exit code instead of a traceback."""

import errno
import re
import sys
from collections.abc import Callable

from server.errors import SecateurError

INTERRUPTED = 130
RESUMES = "run the same command again to resume"
ANEW = "run the same command again, which starts anew"


def exit_code(run: Callable[[], int], again: str = RESUMES) -> int:
    """The exit code of `run`: its own, 2 after an error that the user can fix, or 130 after Ctrl-C.

    Reports SecateurError, OSError and lack of memory; anything else is a bug and is raised. `again` says what another
    run after Ctrl-C or a full disk does.
    """
    try:
        return run()
    except SecateurError as error:
        return _fail(error.message)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            return _fail(f"{error.filename or 'a file'}: {error.strerror or error}")
        return _fail(f"the disk is full: free some space and {again}")
    except (MemoryError, RuntimeError) as error:  # torch raises RuntimeError for lack of memory
        if not isinstance(error, MemoryError) and not re.search("can't allocate memory|out of memory", str(error)):
            raise
        return _fail("out of memory: choose a smaller batch, length or rank, or a machine with more memory")
    except KeyboardInterrupt:
        print(f"\nInterrupted: {again}.", file=sys.stderr)
        return INTERRUPTED


def _fail(sentence: str) -> int:
    """Print the sentence; returns the exit code for it."""
    print(f"secateur: {sentence}", file=sys.stderr)
    return 2
