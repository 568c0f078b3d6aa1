"""Starts the measured processes on given cores: the server, its engine alone, llama-server."""

import hashlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from server.commands.bench.client import free_port
from tests.benchmarks.peers.field import PEERS, RaceError
from tests.benchmarks.serving.loads.load import Target
from tests.conftest import ROOT

KEY = "sk-bench"
PROCESSES = Path(__file__).parent / "processes"
START_SECONDS = 180


class Setting(NamedTuple):
    """How to run a server."""

    artifact: Path
    cores: str
    folder: Path
    """Folder of its files and its log."""
    threads: int = 1
    slots: int = 8
    context: int = 1024
    max_waiting: int = 64


def configure(setting: Setting, skills: Mapping[str, str]) -> Path:
    """Write server.toml and a skill for each system prompt, by name; returns the path of server.toml."""
    folder = setting.folder
    (folder / "skills").mkdir(parents=True, exist_ok=True)
    for name, system in skills.items():
        known = hashlib.sha256(KEY.encode()).hexdigest()
        lines = [f"name = {json.dumps(name)}", f"system = {json.dumps(system)}", f'keys = ["{known}"]']
        (folder / "skills" / f"{name}.toml").write_text("\n".join([*lines, "max_tokens = 512"]))
    values = {
        "model": str(setting.artifact.resolve()),
        "skills": str(folder / "skills"),
        "ledger": str(folder / "usage.sqlite3"),
        "port": free_port(),
        "admin_port": free_port(),
        "threads": setting.threads,
        "slots": setting.slots,
        "context": setting.context,
        "max_waiting": setting.max_waiting,
        "look_up": "off",  # the cost of a pass is measured, not how repetitive a text is
    }
    path = folder / "server.toml"
    path.write_text("\n".join(f"{key} = {json.dumps(value)}" for key, value in values.items()))
    return path


@contextmanager
def ours(setting: Setting, skills: Mapping[str, str]) -> Iterator[Target]:
    """`secateur serve`, ready to answer for the first skill."""
    path = configure(setting, skills)
    port = int(path.read_text().split("port = ")[1].split()[0])
    with _process(
        [sys.executable, "-m", "server.commands", "serve", str(path)], setting, stdout=subprocess.DEVNULL
    ) as process:
        _await(f"http://127.0.0.1:{port}/readyz", process, setting)
        yield Target(port, next(iter(skills)), KEY)


@contextmanager
def llama(setting: Setting, gguf: Path, system: str, peers: Path) -> Iterator[Target]:
    """llama-server from its wheel; `setting.artifact` is not used."""
    peer = next(peer for peer in PEERS if peer.name == "xllamacpp")
    numbers = [str(number) for number in (setting.threads, setting.slots, setting.context)]
    command = [str(peer.install(peers.resolve())), str(PROCESSES / "llama_server.py"), str(gguf), *numbers]
    with _process(command, setting, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        address = process.stdout.readline().decode().strip()
        if not address.startswith("http"):
            raise RaceError(f"llama-server did not start; {setting.folder / 'log'} says why")
        _await(f"{address}/health", process, setting)
        yield Target(int(address.rsplit(":", 1)[1]), system=system)


class Alone:
    """The engine without HTTP, for one skill."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self._process = process
        self._answer()

    def seconds(self, questions: list[str], tokens: int) -> float:
        """Seconds until all questions, asked at once, have `tokens` tokens each."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"questions": questions, "tokens": tokens}).encode() + b"\n")
        self._process.stdin.flush()
        return float(self._answer()["seconds"])

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RaceError("the engine alone stopped; its log says why")
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def alone(setting: Setting, name: str, system: str) -> Iterator[Alone]:
    """The engine, loaded."""
    path = configure(setting, {name: system})
    arguments = [str(path), str(setting.folder / "skills" / f"{name}.toml")]
    command = [sys.executable, str(PROCESSES / "engine_alone.py"), *arguments]
    with _process(command, setting, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        yield Alone(process)


@contextmanager
def _process(
    command: list[str], setting: Setting, *, stdin: int = subprocess.DEVNULL, stdout: int
) -> Iterator["subprocess.Popen[bytes]"]:
    setting.folder.mkdir(parents=True, exist_ok=True)
    pinned = ["taskset", "--cpu-list", setting.cores, *command]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(setting.threads)}
    with (
        (setting.folder / "log").open("w") as log,
        subprocess.Popen(pinned, stderr=log, cwd=ROOT, env=environment, stdin=stdin, stdout=stdout) as process,
    ):
        try:
            yield process
        finally:
            process.kill()


def _await(url: str, process: "subprocess.Popen[bytes]", setting: Setting) -> None:
    """Wait until `url` answers 200."""
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RaceError(f"a server did not start; {setting.folder / 'log'} says why") from None
            time.sleep(0.1)
