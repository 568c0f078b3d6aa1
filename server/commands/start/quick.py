"""Settings for `secateur serve MODEL`: made at the first start, below the user's state directory, and kept."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

from msgspec.structs import replace

from server.artifact.checkpoint.lineage import FILE
from server.commands.start.settings import FirstServer
from server.config import SETTINGS
from server.errors import ArtifactError

GGUF = ".gguf"


def is_model(path: Path) -> bool:
    """Whether `path` is a model and not settings: a GGUF file, or a directory without server.toml."""
    return path.suffix == GGUF or (path.is_dir() and not (path / SETTINGS).exists())


def settings_of(model: Path) -> Path:
    """The settings that serve `model`; where there are none yet, makes them and prints their place and the key.

    What is no artifact yet, a GGUF file for instance, is imported first. Raises ArtifactError for other models.
    """
    folder = state_folder(model)
    first = FirstServer(folder=folder, model=model, title=model.stem)
    if first.config.exists():
        print(f"settings {first.config} (of an earlier start, which showed its key)")
        print(f"new key  secateur keys create --file {first.key_file} --skill {first.skill}")
        return first.config
    first = replace(first, model=artifact_of(model, folder / "base"))
    key = first.write()
    print(f"settings {first.config} (made now: change them as you like)")
    print(f"key      {key} (shown this once)")
    print(f"try      {first.curl(key)}")
    return first.config


def state_folder(model: Path) -> Path:
    """Where the settings, the key file and the ledger of `model` are kept: below XDG_STATE_HOME, by its path."""
    home = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    path = model.resolve()
    return Path(home) / "secateur" / f"{path.stem}-{hashlib.sha256(bytes(path)).hexdigest()[:8]}"


def artifact_of(model: Path, cache: Path) -> Path:
    """`model` if it is an artifact; else the one in `cache`, imported by a process of its own with transformers.

    Raises ArtifactError for what is no model, or could not serve a chat.
    """
    if (model / FILE).exists():
        return model
    command = [sys.executable, "-m", "pruning.commands", "import", str(model), "--base-cache", str(cache), "--for-chat"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ArtifactError(f"{model} was not imported, for the reason above")
    return Path(done.stdout.splitlines()[-1])
