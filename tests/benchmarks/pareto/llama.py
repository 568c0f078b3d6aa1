"""llama.cpp's files and scores: a base by its own quantiser, and log-likelihoods by its own library."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from pruning.evaluation.scoring.scorer import Job
from pruning.recipe.sources import locate
from server.artifact.checkpoint.reader import Artifact
from tests.benchmarks.peers.field import RaceError, run
from tests.benchmarks.peers.native_llama import NativeLlama

CONTEXT = 1024
CHUNKS = 32
"""Chunks of 512 tokens for the importance matrix: as many as our calibration has."""
FOUND = "as found"
"""The kind of the file that the base was imported from."""


def file_of(llama: NativeLlama, base: Artifact, kind: str, text: Path, found: str) -> Path:
    """`base` as llama.cpp's quantiser writes it in `kind`, by an importance matrix of `text`; `found` for `FOUND`."""
    if kind == FOUND:
        return locate(found)
    folder = llama.folder / "files" / base.path.name
    dense, matrix = _dense(base, folder), folder / "importance.gguf"
    if not matrix.exists():
        options = ["-f", str(text), "-o", str(matrix), "--chunks", str(CHUNKS), "-t", "1", "-c", "512"]
        run([str(llama.bin / "llama-imatrix"), "-m", str(dense), *options], llama.folder)
    return llama.quantised(dense, kind, folder / f"{kind}.gguf", "--imatrix", str(matrix))


class LlamaScorer:
    """Log-likelihoods of token ids by llama.cpp, as `Scorer` gives them."""

    def __init__(self, program: Path, model: Path) -> None:
        command = ["nice", str(program), str(model), "1", "1", str(CONTEXT)]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._name = model
        self._answer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def log_likelihoods(self, jobs: Sequence[Job], step: Callable[[], None]) -> list[list[Tensor]]:
        """Natural log-probabilities, float64 [scored ids], for each request of each job; calls `step` after each."""
        assert self._process.stdin
        found: list[list[Tensor]] = []
        for job in jobs:
            found.append([])
            for ids, first in job:
                print("score", first, len(ids), *ids, file=self._process.stdin, flush=True)
                found[-1].append(torch.tensor([float(value) for value in self._answer().split()], dtype=torch.float64))
                step()
        return found

    def _answer(self) -> str:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RaceError(f"llama.cpp stopped on {self._name}")
        return line


def _dense(base: Artifact, folder: Path) -> Path:
    """`base` as a 16-bit file, by this product's export."""
    output = folder / "dense"
    if not output.exists():
        folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "server.commands", "export", str(base.path), "--to", "gguf"]
        run([*command, "--output", str(output)], folder)
    return next(output.glob("*.gguf"))
