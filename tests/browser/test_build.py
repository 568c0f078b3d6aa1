"""The widget's own tests and type check pass, and building it yields exactly the committed files."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

WIDGET = ROOT / "widget"
ASSETS = ROOT / "server/web/assets/widget"
REBUILD = "run `npm run build` in widget/ and commit what it writes"
needs_node = pytest.mark.skipif(
    not shutil.which("node") or not (WIDGET / "node_modules").exists(),
    reason="node or widget/node_modules is missing: install nodejs and npm, then run `npm ci` in widget/",
)


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=WIDGET, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def files(folder: Path, pattern: str) -> dict[str, bytes]:
    """The files in `folder` and below, by their path in it."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob(pattern)}


@needs_node
def test_the_type_check_passes() -> None:
    run("npm", "run", "--silent", "check")


@needs_node
def test_its_own_tests_pass() -> None:
    run("npm", "test", "--silent")


@needs_node
def test_properties_that_the_build_shortens_are_no_public_names() -> None:
    show = "import('./build.js').then(({ MANGLED }) => console.log(MANGLED.join(' ')))"
    own = subprocess.run(["node", "-e", show], cwd=WIDGET, capture_output=True, text=True, check=True).stdout.split()
    texts = set(re.findall(r"^ *(\w+):", (WIDGET / "src" / "texts" / "languages" / "en.ts").read_text(), re.MULTILINE))
    sent = {"skill", "key", "resume", "identity", "text", "message", "context", "replace", "reply", "rating", "comment"}
    assert len(own) == len(set(own)) > 20
    assert set(own) & (texts | sent | {"finish", "kind", "code", "version", "call", "start", "host", "q"}) == set()


@needs_node
def test_building_yields_the_committed_files(tmp_path: Path) -> None:
    run("node", "build.js", str(tmp_path))
    built, committed = (files(folder, "*.js") | files(folder, "*.json") for folder in (tmp_path, ASSETS))
    packed, kept = (files(folder, "*.br") for folder in (tmp_path, ASSETS))
    assert (built.keys(), packed.keys()) == (committed.keys(), kept.keys())
    assert [name for name in built if built[name] != committed[name]] == [], REBUILD
    unpack = "process.stdout.write(require('zlib').brotliDecompressSync(require('fs').readFileSync(process.argv[1])))"
    for name in packed:  # compression may differ between versions of Node
        done = subprocess.run(["node", "-e", unpack, str(ASSETS / name)], capture_output=True, check=True)
        assert done.stdout == built[name.removesuffix(".br").replace("brotli/", "")], REBUILD


def test_sources_are_short_and_the_lock_file_names_no_host() -> None:
    sources = [
        path for path in WIDGET.rglob("*") if path.suffix in (".ts", ".css") and "node_modules" not in path.parts
    ]
    assert len(sources) > 15
    assert [path.name for path in sources if len(path.read_text().splitlines()) > 300] == []
    assert '"resolved"' not in (WIDGET / "package-lock.json").read_text()
