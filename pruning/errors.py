"""Every error that pruning raises, as one tree; each message is one sentence for the user.

SecateurError
└── PruningError
    ├── RecipeError      a recipe that cannot be read or does not fit the model
    ├── SourceMissing    a model, text or package that does not exist
    ├── ModelRefused     a model that cannot be pruned, and why
    ├── TaskError        a task that cannot be read or does not fit the model
    ├── DataError        text that is empty, too short or in no known form
    └── TeamBroken       a process of a distributed training run has ended
"""

from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import SecateurError

GATE_FAILED = 3
"""Exit code of a command whose result failed a gate."""


class PruningError(SecateurError):
    """Base of every error that pruning raises on purpose."""


class RecipeError(PruningError):
    """A recipe cannot be read or does not fit the model; names the file, the place and what is allowed."""


class TaskError(PruningError):
    """A task cannot be read or does not fit the model; names the item that is wrong."""


class SourceMissing(PruningError):
    """A model, text or package that a recipe names does not exist."""


class ModelRefused(PruningError):
    """A model cannot be read, or its blocks cannot be found, replayed or pruned."""


class DataError(PruningError):
    """A text is empty, too short or in no known form."""


class TeamBroken(PruningError):
    """A process of a distributed training run has ended, so the others cannot go on."""


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Raise ModelRefused, beginning with `what`, for any error within that is neither ours nor the system's."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SecateurError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        first = (str(error).splitlines() or [""])[0]
        raise ModelRefused(f"{what}: {type(error).__name__}: {first}") from error
