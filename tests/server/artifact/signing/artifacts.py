"""Small real artifacts that tests sign, register and tamper with."""

import json
from pathlib import Path

import msgspec
import torch

from server.artifact.checkpoint.digest import weights_digest
from server.artifact.checkpoint.lineage import Base, Data, Evaluation, GateResult, Lineage, Loss, Step
from server.artifact.checkpoint.writer import CheckpointWriter
from tests.support.harness import tokenizer


class Ones:
    """The weights of such an artifact."""

    def __init__(self, value: float) -> None:
        self.value = value

    def names(self) -> list[str]:
        return ["a.weight"]

    def tensor(self, name: str) -> torch.Tensor:
        return torch.full((4, 64), self.value, dtype=torch.bfloat16)


def make(path: Path, value: float = 1.0, *, gates: tuple[GateResult, ...] | None = None) -> Lineage:
    """An artifact with a tokenizer; `gates` are the results of its evaluation, None leaves it without one."""
    weights = Ones(value)
    base = Base("tiny", "0" * 64)
    losses = {"a.weight": Loss(value / 100, "gram", 0.5, 0.0)}
    zeros, digest = {"a.weight": value / 4}, weights_digest(weights)
    steps = (Step("wanda", {"sparsity": "2:4"}, zeros, 1.0, 256, losses=losses, digest=digest),)
    lineage = Lineage("2026-11-25T00:00:00+00:00", base, {}, steps, {"torch": "2"}, inputs={"value": str(value)})
    if gates is not None:
        evaluation = Evaluation(
            Data("text", "1" * 64, 4, 32, 0), 32, {"dense": 15.0, "pruned": 16.0 + value}, {"dense": 512}, gates=gates
        )
        lineage = msgspec.structs.replace(lineage, evaluation=evaluation)
    files = path.parent / f"{path.name}.files"
    tokenizer(files)
    with CheckpointWriter(path) as writer:
        for file in files.iterdir():
            writer.copy(file)
        writer.add("a.weight", weights.tensor("a.weight"))
        writer.text("config.json", json.dumps({"vocab_size": 258, "eos_token_id": 257}))
        return writer.finish(lineage)
