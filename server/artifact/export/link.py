"""Writes the record, card and bill of materials of an export: a step that changes the files and no weight."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import replace

from server.artifact.checkpoint import bom, card, chain
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.digest import weights_digest
from server.artifact.checkpoint.lineage import Base, Lineage, Step
from server.artifact.checkpoint.reader import Artifact


class Made(NamedTuple):
    """The result of an exporter."""

    options: dict[str, Any]
    """The options that determined the result; `to` is the format."""
    parameters: int
    seconds: float
    notes: list[str]
    """Sentences on losses and differences in other software."""


def write(folder: Path, artifact: Artifact, made: Made) -> Lineage:
    """Write the card, the bill of materials and the record of the export into `folder`; returns the record."""
    _card(folder / card.FILE, artifact, made.notes)
    parent = artifact.lineage
    links = chain.links(parent)
    weights = links[-1].digest if links else ""
    weights = weights or weights_digest(artifact)
    step = Step(
        technique=chain.EXPORT,
        options=made.options,
        sparsity={},
        seconds=made.seconds,
        parameters=made.parameters,
        parent_digest=weights,
        digest=weights,
    )
    terms = list(chain.generations(parent))[-1].base.license
    lineage = Lineage(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base=Base(artifact.path.resolve().name, _digest(artifact), "made by Secateur", terms),
        recipe={},
        steps=(step,),
        versions={"torch": version("torch"), "python": sys.version.split()[0]},
        files={file.name: record.digest_of(file) for file in sorted(folder.iterdir())},
        parent=parent,
        parent_digest=record.address(parent),
    )
    (folder / bom.FILE).write_bytes(bom.render(lineage, artifact.config))
    complete = replace(lineage, files=lineage.files | {bom.FILE: record.digest_of(folder / bom.FILE)})
    (folder / record.FILE).write_bytes(record.encoded(complete))
    return complete


def _digest(artifact: Artifact) -> str:
    """The digest of the artifact as a base directory: SHA-256 of the lines `digest  name` of its files."""
    files = {**artifact.lineage.files, record.FILE: record.digest_of(artifact.path / record.FILE)}
    return sha256("".join(f"{digest}  {name}\n" for name, digest in sorted(files.items())).encode()).hexdigest()


def _card(path: Path, artifact: Artifact, notes: Sequence[str]) -> None:
    """Write the artifact's card followed by the notes on this export."""
    own = artifact.path / card.FILE
    text = own.read_text(encoding="utf-8") if own.exists() else ""
    lines = [f"- {card.plain(note)}" for note in notes]
    path.write_text(
        "\n".join([*text.splitlines(), "", "## This export", "", *lines, ""]).lstrip("\n"), encoding="utf-8"
    )
