"""Reads a column of a dataset with the package `datasets`: from a hub, its cache, or a local directory.

`dataset:NAME[:config][:split][:column]`; parts may be empty, and a split may be a slice such as `train[:1000]`.
"""

import re
from pathlib import Path
from typing import Any, NamedTuple

from pruning.errors import DataError

PREFIX = "dataset:"
COLUMNS = ("text", "messages")
"""The columns to look for where none is named, in this order."""


class DatasetReference(NamedTuple):
    """The parts of a dataset source; empty ones get the dataset's default."""

    name: str
    config: str = ""
    split: str = ""
    column: str = ""

    @classmethod
    def parse(cls, source: str) -> "DatasetReference":
        """The parts of `source`; raises DataError for too many parts or a missing name."""
        parts = re.split(r":(?![^\[]*\])", source.removeprefix(PREFIX))
        if len(parts) > 4 or not parts[0]:
            raise DataError(f"{source} is not {PREFIX}NAME[:config][:split][:column]")
        return cls(*parts)


def column(source: str) -> list[Any]:
    """The values of the column that `source` names; raises DataError where it cannot be loaded."""
    wanted = DatasetReference.parse(source)
    rows = _load(wanted, source)
    names = list(rows.column_names)
    found = wanted.column or next((name for name in COLUMNS if name in names), None)
    if found not in names:
        raise DataError(f"{source} has the columns {', '.join(names)}: name one, as in {PREFIX}NAME:::{names[0]}")
    return list(rows[found])


def _load(wanted: DatasetReference, source: str) -> Any:
    """The split as a `datasets.Dataset`; raises DataError with the reason where it cannot be loaded."""
    try:
        import datasets
    except ImportError:
        raise DataError(f"{source} needs the package datasets: run `pip install 'secateur[data]'` first") from None
    folder, split = Path(wanted.name), wanted.split or "train"
    try:
        if (folder / "dataset_dict.json").exists():
            return datasets.load_from_disk(str(folder))[split]
        if (folder / "state.json").exists() and not wanted.split:
            return datasets.load_from_disk(str(folder))
        return datasets.load_dataset(wanted.name, wanted.config or None, split=split)
    except Exception as error:  # the package raises errors of all its dependencies
        sentence = next(iter(str(error).splitlines()), type(error).__name__)
        raise DataError(f"{source} cannot be loaded: {sentence}; is it a dataset here or on a reachable hub?") from None
