"""What makes a change of files survive a loss of power."""

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Write out a file, or a directory's entries: a rename counts once the directory is written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
