"""`secateur bundle SERVER.toml --wheel FILE --output DIR`: writes what a machine without network needs to serve."""

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from server import config
from server.command_line import Parser
from server.commands.bundle import contents, wheels
from server.errors import ConfigError
from server.storage.folders import fresh

SUMS = "SHA256SUMS"
INSTALL = Path(__file__).parent / "install.sh"


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur bundle",
        description="Write a folder with a server's settings, skills, models and knowledge, the wheels of this "
        "installation and their checksums. `sh DIR/install.sh PREFIX` installs it on a machine without network "
        "that has the same Python. Keys and secrets stay here.",
    )
    options.add_argument("server", type=Path, metavar="SERVER.toml", help="the server's settings")
    options.add_argument("--wheel", type=Path, required=True, metavar="FILE", help="Secateur's wheel: `make wheel`")
    options.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    options.add_argument(
        "--extra",
        action="append",
        default=[],
        choices=wheels.extras(),
        help="also the packages of this extra; repeat it",
    )
    return options


def main(argv: Sequence[str]) -> int:
    """Write the bundle and print what it left out; returns 0. Raises SecateurError."""
    arguments = parser().parse_args(argv)
    settings = config.load(arguments.server)
    with fresh(arguments.output, ConfigError) as folder:
        written = contents.write(folder, arguments.server, settings)
        wheels.gather(folder / "wheels", arguments.wheel, arguments.extra)
        wheels.gather_data(folder / "data", written.packages)
        _write_installer(folder, arguments.wheel, arguments.extra)
        digest = _write_sums(folder)
    for sentence in written.left_out:
        print(sentence)
    print(f"{arguments.output}: install it with `sh install.sh PREFIX`")
    print(f"sha256 of its {SUMS}: {digest}")
    return 0


def _write_installer(folder: Path, wheel: Path, extras: Sequence[str]) -> None:
    """The install script for this Python and this wheel."""
    named = f"[{','.join(extras)}]" if extras else ""
    text = INSTALL.read_text()
    for name, value in (
        ("PYTHON_VERSION", f"{sys.version_info.major}.{sys.version_info.minor}"),
        ("WHEEL", wheel.name + named),
    ):
        text = text.replace(f"@{name}@", value)
    (folder / "install.sh").write_text(text)


def _write_sums(folder: Path) -> str:
    """Write the SHA-256 of every file as `sha256sum --check` reads it; returns that of the list."""
    lines = []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.relative_to(folder)}\n")
    text = "".join(lines).encode()
    (folder / SUMS).write_bytes(text)
    return hashlib.sha256(text).hexdigest()
