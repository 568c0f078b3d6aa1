"""What can go wrong while pruning, as one tree; the text of each is one sentence for the person who reads it.

SecateurError
└── PruningError
    ├── RecipeError      a recipe that cannot be read: the file, the path in it, what is wrong, what is allowed
    ├── SourceMissing    a model or text that a recipe names and that is not there
    ├── ModelRefused     a model that cannot be pruned, and why
    ├── TaskError        a task that cannot be read or does not fit the model, with the item that is wrong
    ├── DataError        text that is empty, too short or not in a known form
    └── TeamBroken       one of the processes that train together has ended
"""

from collections.abc import Iterator
from contextlib import contextmanager

from server.errors import SecateurError


class PruningError(SecateurError):
    """Base of everything that pruning raises on purpose."""


class RecipeError(PruningError):
    """A recipe that cannot be read or does not fit the model."""


class TaskError(PruningError):
    """A task that cannot be read or does not fit the model."""


class SourceMissing(PruningError):
    """A file or package that is named and not there."""


class ModelRefused(PruningError):
    """A model whose blocks cannot be found, replayed or pruned."""


class DataError(PruningError):
    """Text from which the token ids that are asked for cannot be drawn."""


class TeamBroken(PruningError):
    """One of the processes that train together has ended."""


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn any error of a model's own code or files, but ours and the system's, into a refusal in one sentence."""
    try:
        yield
    except Exception as error:
        if isinstance(error, SecateurError) or (isinstance(error, OSError) and error.errno is not None):
            raise
        first = (str(error).splitlines() or [""])[0]
        raise ModelRefused(f"{what}: {type(error).__name__}: {first}") from error
