"""The files of an archive: rows by month as Parquet or gzipped CSV, and a manifest with their SHA-256 and sums.

The folder appears whole or not at all. The SHA-256 of the manifest names the archive in the ledger.
"""

import csv
import gzip
import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
from msgspec import Struct

from server.errors import ConfigError
from server.metering.usage import ROW
from server.storage.folders import fresh

Form = Literal["csv", "parquet"]
SUFFIX: dict[Form, str] = {"csv": ".csv.gz", "parquet": ".parquet"}
MANIFEST = "manifest.json"
KIND = "secateur usage archive"
COLUMNS = (*ROW, "knowledge_tokens", "retrieval_seconds")
NUMBERS = {"sequence": int, "opened_at": float, "closed_at": float, "prompt_tokens": int, "cached_tokens": int,
           "output_tokens": int, "first_token_seconds": float, "duration_seconds": float, "knowledge_tokens": int,
           "retrieval_seconds": float}  # fmt: skip
"""The columns that hold numbers; times are seconds since 1970."""
DAY = COLUMNS.index("day")
Row = Sequence[Any]


class File(Struct, frozen=True):
    """A file of an archive; `rows` are the replies of one month."""

    name: str
    rows: int
    bytes: int
    sha256: str


class Selection(Struct, frozen=True):
    """Closed rows of days before `before`, YYYY-MM-DD, numbered up to `through`: a set that never changes."""

    before: str
    through: int
    requests: int = 0
    tokens: int = 0
    """Prompt and output tokens of these rows."""


class Manifest(Struct, frozen=True, forbid_unknown_fields=True):
    """What an archive holds."""

    kind: str
    form: Form
    columns: tuple[str, ...]
    selection: Selection
    files: tuple[File, ...]


class Archive(Struct, frozen=True):
    """An archive whose files were compared with their checksums."""

    folder: Path
    manifest: Manifest
    digest: str
    """SHA-256 of the manifest."""


class _Table(Protocol):
    """A file of rows that is being written."""

    def write(self, rows: Sequence[Row]) -> None: ...

    def close(self) -> None: ...


class _Csv:
    """Gzipped CSV with a header; the same rows give the same bytes."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._packed = gzip.GzipFile(filename="", fileobj=self._file, mode="wb", compresslevel=6, mtime=0)
        self._text = io.TextIOWrapper(self._packed, "utf-8", newline="")
        self._rows = csv.writer(self._text, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def write(self, rows: Sequence[Row]) -> None:
        self._rows.writerows(rows)

    def close(self) -> None:
        self._text.close()
        self._packed.close()
        self._file.close()


class _Parquet:
    """Parquet through pyarrow, one row group for each batch."""

    def __init__(self, path: Path) -> None:
        arrow, parquet = _pyarrow()
        kinds = {str: arrow.string(), int: arrow.int64(), float: arrow.float64()}
        self._schema = arrow.schema([(name, kinds[NUMBERS.get(name, str)]) for name in COLUMNS])
        self._arrow = arrow
        self._writer = parquet.ParquetWriter(path, self._schema, compression="zstd")

    def write(self, rows: Sequence[Row]) -> None:
        columns = [self._arrow.array(values, field.type) for values, field in zip(zip(*rows), self._schema)]  # noqa: B905
        self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


def write(folder: Path, form: Form, selection: Selection, batches: Iterable[Sequence[Row]]) -> Archive:
    """Write the rows, of COLUMNS, to the new `folder`; it appears once it is complete and on the disk."""
    if form == "parquet":
        _pyarrow()
    with fresh(folder, ConfigError) as made:
        counts = _write_months(made, form, batches)
        files = tuple(_described(made / name, rows) for name, rows in sorted(counts.items()))
        manifest = msgspec.json.encode(Manifest(KIND, form, COLUMNS, selection, files))
        (made / MANIFEST).write_bytes(msgspec.json.format(manifest) + b"\n")
    return read(folder)


def read(folder: Path) -> Archive:
    """The archive in `folder`; raises ConfigError where it is incomplete or a file differs from its checksum."""
    try:
        text = (folder / MANIFEST).read_bytes()
        manifest = msgspec.json.decode(text, type=Manifest)
        if manifest.kind != KIND or manifest.columns != COLUMNS or any("/" in file.name for file in manifest.files):
            raise ConfigError(f"{folder / MANIFEST} is not a manifest of `secateur usage archive`")
        for file in manifest.files:
            if _described(folder / file.name, file.rows) != file:
                raise ConfigError(f"{folder / file.name} is not the file that was archived: its SHA-256 differs")
    except FileNotFoundError as error:
        raise ConfigError(f"{folder} is not a whole archive: {error.filename} is missing") from None
    except (OSError, msgspec.DecodeError) as error:
        raise ConfigError(f"{folder} cannot be read as an archive: {error}") from None
    return Archive(folder, manifest, hashlib.sha256(text).hexdigest())


def rows_of(archive: Archive) -> Iterator[dict[str, Any]]:
    """Each row by column; numbers as numbers, and None where a reply has none."""
    for file in archive.manifest.files:
        path = archive.folder / file.name
        yield from (_csv_rows if archive.manifest.form == "csv" else _parquet_rows)(path)


def _csv_rows(path: Path) -> Iterator[dict[str, Any]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as text:
        for row in csv.DictReader(text):
            yield {
                name: value if name not in NUMBERS else NUMBERS[name](value) if value else None
                for name, value in row.items()
            }


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    _, parquet = _pyarrow()
    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


def _write_months(folder: Path, form: Form, batches: Iterable[Sequence[Row]]) -> dict[str, int]:
    """Write one file for each month; returns the number of rows by the file's name."""
    tables: dict[str, _Table] = {}
    counts: dict[str, int] = {}
    with ExitStack() as stack:
        for batch in batches:
            months: dict[str, list[Row]] = {}
            for row in batch:
                months.setdefault(f"usage-{row[DAY][:7]}{SUFFIX[form]}", []).append(row)
            for name, rows in months.items():
                if name not in tables:
                    tables[name] = (_Csv if form == "csv" else _Parquet)(folder / name)
                    stack.callback(tables[name].close)
                tables[name].write(rows)
                counts[name] = counts.get(name, 0) + len(rows)
    return counts


def _described(path: Path, rows: int) -> File:
    with path.open("rb") as file:
        return File(path.name, rows, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _pyarrow() -> tuple[Any, Any]:
    """The modules pyarrow and pyarrow.parquet; raises ConfigError without the extra."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError("Parquet needs `pip install 'secateur[parquet]'`; --format csv needs nothing") from None
    return pyarrow, pyarrow.parquet
