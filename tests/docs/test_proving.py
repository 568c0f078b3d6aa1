"""docs/guide/proving.md, run as it stands: its files are written, its commands carried out, on a tiny model."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.artifact.checkpoint import chain
from server.artifact.checkpoint import lineage as record
from server.artifact.registry.store import Registry
from tests.conftest import ROOT
from tests.pruning import tiny
from tests.server.artifact.export import made

PAGE = ROOT / "docs" / "guide" / "proving.md"


def blocks(text: str) -> Iterator[tuple[str, str]]:
    """Each fenced block: its language and its lines."""
    yield from re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with the model and the text that the page asks for, and `secateur` on the path."""
    sizes = {"eos_token_id": made.VOCABULARY - 1, "bos_token_id": None, "max_position_embeddings": 256}
    model = tiny.save(tmp_path / "model", "llama", vocab_size=made.VOCABULARY, **sizes)
    made.write_tokenizer(model, "digits", spare=0)
    texts = (f"Paragraph {n} says that {n} times {n} is {n * n}, and what follows from it." for n in range(200))
    (tmp_path / "text.txt").write_text("\n\n".join(texts))
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "secateur"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m server.commands "$@"\n')
    command.chmod(0o755)
    return tmp_path


def test_every_command_of_the_page_works_in_its_order(place: Path) -> None:
    text = PAGE.read_text()
    for port in ("8000", "9464"):
        text = text.replace(port, str(free_port()))
    script = ["set -e", "trap 'kill $(jobs -p) 2>/dev/null || true' EXIT"]
    for kind, body in blocks(text):
        if kind == "toml":
            name, lines = body.split("\n", 1)
            (place / name.removeprefix("# ")).write_text(lines)
        else:
            assert kind == "sh"
            script += ["set -x", body, "{ set +x; } 2>/dev/null"]
    environment = os.environ | {"PATH": f"{place / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-mc", "\n".join(script)], cwd=place, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Passed: every gate holds") == 3
    assert '"completion_tokens":' in done.stdout
    assert "mine@1 is in production again" in done.stdout
    with Registry.open(str(place / "build" / "registry.sqlite3")) as registry:
        assert [move.kind for move in registry.moves("mine")] == ["promote", "promote", "rollback"]
    packed = record.read(place / "export" / "second-gguf")
    assert [link.technique for link in chain.links(packed)] == ["sparsegpt", "gptq", "export"]


def test_the_page_uses_every_command_of_the_way() -> None:
    script = "\n".join(body for kind, body in blocks(PAGE.read_text()) if kind == "sh")
    used = set(re.findall(r"secateur (\w+)", script))
    assert used >= {"prune", "evaluate", "keys", "sign", "verify", "lineage", "registry", "serve", "export"}
    assert set(re.findall(r"--to ([\w-]+)", script)) == {"hf", "compressed-tensors", "gguf"}
