import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.commands.__main__ import main
from pruning.evaluation.scoring.perplexity import Int8Weights, perplexity, rounded
from pruning.model.blocks import find_blocks, is_linear
from pruning.model.weights import Overlay, write_file
from pruning.passes.sweep import BlockView, Note, pass_on
from pruning.stages.context import StageModel
from pruning.stages.inputs import base_artifact
from tests.pruning import tiny

WINDOWS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["llama", "bloom"])  # whose blocks return a tuple
def test_perplexity_equals_the_loss_of_transformers(kind: str, tmp_path: Path) -> None:
    model = tiny.save(tmp_path / "model", kind, num_hidden_layers=6)
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        losses = [stock(input_ids=window[None], labels=window[None]).loss.item() for window in WINDOWS]
    base = base_artifact(str(model), tmp_path)
    ours = perplexity(StageModel(base.config, base), WINDOWS, tmp_path / "evaluation", "evaluating")
    assert ours == pytest.approx(math.exp(sum(losses) / 3), rel=1e-5)


def test_windows_beyond_the_models_positions_are_refused(
    tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact = base_artifact(str(tiny.save(tmp_path / "model", "gpt2")), tmp_path / "base")
    arguments = ["evaluate", str(artifact.path), "--source", str(text), "--window", "200"]
    assert main(arguments) == 2
    assert "--window = 200 is beyond the 128 positions of the model: take 128 or less" in capsys.readouterr().err


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary(model: Path, tmp_path: Path) -> None:
    base = base_artifact(str(model), tmp_path)
    names = base.names()
    silent = {name: torch.zeros_like(base.tensor(name)) for name in names if "norm" in name}
    write_file(tmp_path / "silent", silent)
    source = Overlay(base, [tmp_path / "silent"])
    assert perplexity(StageModel(base.config, source), WINDOWS, tmp_path / "evaluation", "evaluating") == pytest.approx(
        257
    )


def test_an_interrupted_evaluation_resumes(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_artifact(str(model), tmp_path)
    values = StageModel(base.config, base)
    whole = perplexity(values, WINDOWS, tmp_path / "whole", "evaluating")
    ran: list[int] = []

    def stopped(view: BlockView) -> Note:
        if view.index == 1 and len(ran) == 1:
            raise KeyboardInterrupt
        ran.append(view.index)
        return pass_on(view)

    monkeypatch.setattr("pruning.evaluation.scoring.perplexity.pass_on", stopped)
    with pytest.raises(KeyboardInterrupt):
        perplexity(values, WINDOWS, tmp_path / "cut", "evaluating")
    ran.append(-1)
    assert perplexity(values, WINDOWS, tmp_path / "cut", "evaluating") == whole
    assert ran == [0, -1, *range(1, max(ran) + 1)]


def test_states_that_were_deleted_are_computed_again(model: Path, tmp_path: Path) -> None:
    base = base_artifact(str(model), tmp_path)
    values = StageModel(base.config, base)
    whole = perplexity(values, WINDOWS, tmp_path / "evaluation", "evaluating")
    for file in (tmp_path / "evaluation").glob("states-*"):  # to free some space, after the last block
        file.unlink()
    assert perplexity(values, WINDOWS, tmp_path / "evaluation", "evaluating") == whole


@pytest.mark.parametrize("columns", [32, 96, 50])
def test_rounding_takes_the_nearest_of_255_levels_per_group(columns: int) -> None:
    weight = torch.randn(4, columns)
    result = rounded(weight)
    for row, given in zip(result, weight, strict=True):
        for start in range(0, columns, 32):
            scale = float((given[start : start + 32].abs().max() / 127).half())
            for value, original in zip(row[start : start + 32], given[start : start + 32], strict=True):
                steps = max(-127, min(127, round(float(original) / scale)))
                assert float(value) == pytest.approx(steps * scale, abs=1e-6)
    assert torch.equal(rounded(torch.zeros(2, columns)), torch.zeros(2, columns))


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_int8_rounds_only_the_blocks_linear_layers_to_eight_and_a_half_bits(kind: str, tmp_path: Path) -> None:
    base = base_artifact(str(tiny.save(tmp_path, kind)), tmp_path / "cache")
    int8, numbers = Int8Weights(StageModel(base.config, base)), 0
    blocks = find_blocks(tiny.loaded(base))[1]
    linears = {f".{name}.weight": module for name, module in blocks.named_modules() if is_linear(module)}
    for name in base.names():
        before, after = base.tensor(name).float(), int8.tensor(name).float()
        module = next((module for ending, module in linears.items() if name.endswith(ending)), None)
        if module is None:
            assert torch.equal(before, after), name
        else:
            turn = isinstance(module, torch.nn.Linear)
            assert torch.equal(after, rounded(before) if turn else rounded(before.T).T), name
            assert not torch.equal(before, after)
            numbers += before.numel()
    assert int8.saved == numbers * (16 - 8.5) / 8
