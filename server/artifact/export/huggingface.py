"""Dense safetensors under Hugging Face names, zeros included, which most software reads."""

import json
import shutil
from pathlib import Path
from typing import Any

from server.artifact.checkpoint import bom, card
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.reader import Artifact
from server.artifact.export.settings import for_all
from server.artifact.export.shards import Shards

REWRITTEN = ("config.json", record.WEIGHTS, card.FILE, bom.FILE)


def write(artifact: Artifact, folder: Path, limit: int) -> tuple[int, int]:
    """Write all weights bit for bit, in files of at most `limit` bytes; returns the number of parameters and bytes."""
    shards, parameters = Shards(folder, limit), 0
    for name, tensor in artifact.tensors():
        shards.add(name, tensor)
        parameters += tensor.numel()
    shards.close()
    write_settings(folder, for_all(artifact.config))
    copy_files(artifact, folder)
    return parameters, shards.bytes


def write_settings(folder: Path, config: dict[str, Any]) -> None:
    """Write config.json."""
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")


def copy_files(artifact: Artifact, folder: Path) -> None:
    """Copy the tokenizer and the other files that an export does not change."""
    for name in artifact.lineage.files:
        if name not in REWRITTEN:
            shutil.copyfile(artifact.path / name, folder / name)
