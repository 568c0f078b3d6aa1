"""A tiny model with weights larger than random initialisation, so pruning does harm and training helps."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from torch import Tensor

from pruning.model.weights import WeightSource
from pruning.recipe.recipe import read
from pruning.stages.context import StageModel
from pruning.stages.inputs import Inputs, prepare
from pruning.stages.training.run import TrainingRun
from tests.pruning import tiny
from tests.pruning.conftest import RECIPE, SPARSEGPT
from tests.support.prune_process import kill_when


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory with a Llama of three blocks."""
    folder = tiny.save(tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=3)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({name: tensor * 5 if "_proj" in name else tensor for name, tensor in tensors.items()}, file)
    return folder


@pytest.fixture(scope="session")
def inputs(model: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Inputs:
    """The inputs of a recipe for it."""
    folder = tmp_path_factory.mktemp("inputs")
    (folder / "recipe.toml").write_text(RECIPE.format(model=model, text=text, stages=SPARSEGPT))
    return prepare(read(folder / "recipe.toml"), folder / "base")


class Halved(WeightSource):
    """`source` without the smaller half of each matrix in its blocks."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source

    def names(self) -> list[str]:
        return self._source.names()

    def tensor(self, name: str) -> Tensor:
        tensor = self._source.tensor(name)
        return tensor * (tensor.abs() > tensor.float().abs().median()) if "_proj" in name else tensor


@pytest.fixture
def halved(inputs: Inputs) -> StageModel:
    """The model, pruned by magnitude."""
    return StageModel(inputs.base.config, Halved(inputs.base))


def kill_once(file: Path, arguments: list[str]) -> None:
    """Start the command and kill it, without a chance to tidy up, once `file` is there."""
    kill_when(file.exists, arguments, file.parents[2] / "errors.txt")


def stopped_at(monkeypatch: pytest.MonkeyPatch, run: type[TrainingRun], when: int) -> list[int]:
    """Have `run` interrupted instead of its step number `when`, counted over all its runs; returns the steps tried."""
    train, steps = run._train, list[int]()

    def stop(self: TrainingRun, step: int) -> None:
        steps.append(step)
        if len(steps) == when:
            raise KeyboardInterrupt
        train(self, step)

    monkeypatch.setattr(run, "_train", stop)
    return steps
