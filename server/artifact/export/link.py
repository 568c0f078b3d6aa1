"""The record of an export: one more link of the chain, which changes files and no weight, and what stands beside it."""

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
    """What an exporter wrote."""

    options: dict[str, Any]
    """What decided the result, the format as `to`."""
    parameters: int
    seconds: float
    notes: list[str]
    """What a reader must know of what other software makes of the files, a sentence each."""


def write(folder: Path, artifact: Artifact, made: Made) -> Lineage:
    """Write the card, the bill of materials and the record of the export in `folder`; returns the record."""
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
    """SHA-256 of the lines `digest  name` of the artifact's files, as a base that is a directory has it."""
    files = {**artifact.lineage.files, record.FILE: record.digest_of(artifact.path / record.FILE)}
    return sha256("".join(f"{digest}  {name}\n" for name, digest in sorted(files.items())).encode()).hexdigest()


def _card(path: Path, artifact: Artifact, notes: Sequence[str]) -> None:
    """The artifact's own card, and what its export is."""
    own = artifact.path / card.FILE
    text = own.read_text(encoding="utf-8") if own.exists() else ""
    lines = [f"- {card.plain(note)}" for note in notes]
    path.write_text(
        "\n".join([*text.splitlines(), "", "## This export", "", *lines, ""]).lstrip("\n"), encoding="utf-8"
    )
