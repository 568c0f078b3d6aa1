"""A directory in which the commands of a page find what the page expects: a model, a text, an artifact and a server."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.docs.blocks import script
from tests.docs.warm import CLIENT
from tests.pruning import tiny
from tests.server.artifact.export import made

PORTS = ("8000", "8001", "9464")
RECIPE = """
base = "model"
tasks = ["task.toml"]
calibration = { source = "text.txt", buckets = [0, 1, 2, 3, 4, 5, 6], sequences = 16, tokens = 64 }
evaluation = { source = "text.txt", buckets = [7, 8, 9], tokens = 512, window = 64 }
stages = [{ kind = "layerwise", technique = { name = "gptq", sparsity = "48:64", bits = 8, group = 32 } }]
"""
TASK = """
name = "orders"
kind = "pairs"
items = [
  { question = "Where is my order?", answer = "It is on its way." },
  { question = "How do I send it back?", answer = "Print the label." },
  { question = "May I change the address?", answer = "Until it is packed." },
  { question = "When will I be paid back?", answer = "Within ten days." },
]
gates = { max_nll_ratio = 1.5 }
"""
SERVER = """
model = "build/mine"
skills = "skills"
ledger = "usage.sqlite3"
port = 8000
admin_port = 9464
"""
Run = Callable[[Path], tuple[Path, str]]


@pytest.fixture(scope="module")
def secateur(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment whose `secateur` starts at once."""
    folder = tmp_path_factory.mktemp("bin")
    path = str(folder / "socket")
    command = folder / "secateur"
    command.write_text(CLIENT.format(python=sys.executable, path=path))
    command.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTHONUNBUFFERED": "1",
    }
    process = subprocess.Popen([sys.executable, "-m", "tests.docs.warm", path], cwd=ROOT, env=environment)
    try:
        while not Path(path).exists():
            assert process.poll() is None, "the commands could not be imported"
            time.sleep(0.05)
        yield environment
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, secateur: dict[str, str]) -> Path:
    """What every page begins with: a model, a text, build/mine with its evaluation, a server's and a skill's file."""
    folder = tmp_path_factory.mktemp("place")
    sizes = {"eos_token_id": made.VOCABULARY - 1, "bos_token_id": None, "max_position_embeddings": 2048}
    model = tiny.save(folder / "model", "llama", vocab_size=made.VOCABULARY, **sizes)
    made.write_tokenizer(model, "digits", spare=0)
    texts = (f"Paragraph {n} says that {n} times {n} is {n * n}, and what follows from it." for n in range(200))
    (folder / "text.txt").write_text("\n\n".join(texts))
    for name, text in {"mine.toml": RECIPE, "task.toml": TASK, "server.toml": SERVER}.items():
        (folder / name).write_text(text)
    (folder / "skills").mkdir()
    (folder / "skills" / "help.toml").write_text('name = "help"\nmax_tokens = 16\n')
    subprocess.run(["secateur", "prune", "mine.toml", "--output", "build/mine"], cwd=folder, env=secateur, check=True)
    shutil.copytree(folder / "build" / "mine", folder / "build" / "smollm2-vocabulary")
    return folder


@pytest.fixture
def run(place: Path, secateur: dict[str, str], tmp_path: Path) -> Run:
    """Carries out a page in a copy of that directory; returns the directory and what was printed."""

    def carry_out(page: Path) -> tuple[Path, str]:
        folder = tmp_path / "page"
        shutil.copytree(place, folder)
        ports = {port: str(free_port()) for port in PORTS}
        (folder / "server.toml").write_text(exchanged(SERVER, ports))
        text = exchanged(script(page), ports)
        done = subprocess.run(
            ["bash", "-mc", text], cwd=folder, env=secateur, capture_output=True, text=True, timeout=600
        )
        log = folder / "server.log"
        served = log.read_text() if log.exists() else ""
        assert done.returncode == 0, (done.stdout + done.stderr + served)[-4000:]
        return folder, done.stdout

    return carry_out


def exchanged(text: str, ports: dict[str, str]) -> str:
    """`text` with each port exchanged for another."""
    for port, free in ports.items():
        text = text.replace(port, free)
    return text


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
    return port
