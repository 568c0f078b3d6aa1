"""The racers: how each is installed, which model file it reads, and how it is started."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Self

from tests.conftest import ROOT

RACERS = Path(__file__).parent / "racers"
PYTHON = "bin/python"


class RaceError(Exception):
    """A racer cannot be installed, does not start, or stops mid-race; the message names it and its log."""


class Peer(NamedTuple):
    """Another engine in a virtual environment of its own."""

    name: str
    weights: str
    packages: tuple[str, ...]
    script: str
    model: str
    """Model format: "gguf", "onnx" or "openvino"."""
    lends: bool = False
    """Whether it sees this environment's packages: its converter needs torch and transformers."""

    def install(self, folder: Path) -> Path:
        """Path of its environment's interpreter; creates the environment on first use."""
        venv = folder / self.name
        if not (venv / "installed").exists():
            print(f"installing {self.name}", file=sys.stderr)
            run([sys.executable, "-m", "venv", str(venv)], venv)
            if self.lends:
                own = next(venv.glob("lib/python*/site-packages"))
                site = next(Path(sys.prefix).glob("lib/python*/site-packages"))
                (own / "lent.pth").write_text(f"{site}\n")
            run([str(venv / PYTHON), "-m", "pip", "install", "--quiet", *self.packages], venv)
            (venv / "installed").touch()
        return venv / PYTHON


PEERS = (
    Peer(
        "onnxruntime-genai",
        "int4, groups of 32",
        ("onnxruntime-genai>=0.18", "onnx>=1.19", "onnx_ir>=0.1"),
        "onnxruntime_genai_racer.py",
        "onnx",
        lends=True,
    ),
    Peer("openvino-genai", "GGUF Q4_1", ("openvino-genai>=2026.4",), "openvino_genai_racer.py", "gguf"),
    Peer("xllamacpp", "GGUF Q4_1", ("xllamacpp>=2026.10",), "xllamacpp_racer.py", "gguf"),
)


def run(command: list[str], venv: Path) -> None:
    """Run a command; raises RaceError with the end of its output if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RaceError(f"{' '.join(command[:4])} ... failed for {venv}:\n{done.stderr[-2000:]}")


def to_onnx(python: Path, base: Path, folder: Path) -> Path:
    """The base as onnxruntime-genai's own builder quantises it."""
    output = folder / "smollm2-int4-onnx"
    if not (output / "genai_config.json").exists():
        builder = "onnxruntime_genai.models.builder"
        run([str(python), "-m", builder, "-m", str(base), "-o", str(output), "-p", "int4", "-e", "cpu"], output)
    return output


class Racer:
    """A racer's process, pinned to `cores`, which answers one question at a time."""

    def __init__(self, name: str, command: list[str], cores: str, log: Path) -> None:
        self.name, self._log = name, log
        self._process = subprocess.Popen(
            ["taskset", "--cpu-list", cores, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log.open("w"),
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": str(count(cores))},
        )
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def seconds(self, *, batch: int, prompt: int, tokens: int, cpu: bool = False) -> float:
        """Wall time, or CPU time, in seconds from a batch of fresh prompts to its last token."""
        assert self._process.stdin
        print(json.dumps({"batch": batch, "prompt": prompt, "tokens": tokens}), file=self._process.stdin, flush=True)
        return float(self._answer()["cpu_seconds" if cpu else "seconds"])

    def _answer(self) -> dict[str, float]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RaceError(f"{self.name} stopped; {self._log} says why")
        answer: dict[str, float] = json.loads(line)
        return answer


def count(cores: str) -> int:
    """Number of cores in a list such as "0" or "0-1"."""
    ends = [int(core) for core in cores.split("-")]
    return ends[-1] - ends[0] + 1
