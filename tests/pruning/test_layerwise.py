"""Every technique on a dozen and more architectures, with no code for any of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from pruning import base
from pruning.calibration import Sweep
from pruning.inputs import base_artifact
from pruning.layerwise import PruneBlock, block_file, observing
from pruning.model import Blocks
from pruning.statistics import Gram
from pruning.technique import Technique
from pruning.techniques import AnyTechnique
from pruning.weights import Overlay
from server.checkpoint.reader import Artifact
from tests.pruning import tiny

IDS = torch.randint(0, 256, (5, 48), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Artifact]:
    """The base artifact of a tiny model of an architecture, made once."""
    made: dict[str, Artifact] = {}

    def get(kind: str) -> Artifact:
        if kind not in made:
            folder = tiny.save(tmp_path_factory.mktemp(kind) / "model", kind)
            made[kind] = base_artifact(str(folder), folder.parent / "cache")
        return made[kind]

    return get


def after_last_block(model: Any, path: str) -> torch.Tensor:
    """What a stock model computes up to and with its last block."""
    states: list[torch.Tensor] = []

    def see(_: nn.Module, __: Any, output: Any) -> None:
        states.append(output[0] if isinstance(output, tuple) else output)

    hook = model.get_submodule(path)[-1].register_forward_hook(see)
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    hook.remove()
    return states[0]


@pytest.mark.parametrize("sparsity", [0.5, "2:4"])
@pytest.mark.parametrize("technique", get_args(AnyTechnique))
@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_every_technique_on_every_architecture(
    imported: Callable[[str], Artifact], kind: str, technique: type[Technique], sparsity: float | str, tmp_path: Path
) -> None:
    artifact = imported(kind)
    blocks = Blocks(base.skeleton(artifact.config), artifact)
    blocks.check(IDS[:2, :8])
    visit = PruneBlock(technique(sparsity), tmp_path)
    sweep = Sweep(blocks, IDS, 2, tmp_path)  # batches of 2, 2 and 1
    notes = sweep.visit(visit, "pruning", visit.runs)
    pruned = Overlay(artifact, [block_file(tmp_path, index) for index in range(len(blocks))])
    for index, note in enumerate(notes):
        assert note["sparsity"].keys() == blocks.linears(index).keys()
        assert all(value == pytest.approx(0.5, abs=0.01) for value in note["sparsity"].values())
    if not visit.runs:
        return
    stock = tiny.build(kind)
    stock.load_state_dict({name: pruned.tensor(name) for name in pruned.names()}, strict=False)
    stock.tie_weights()
    expected = after_last_block(stock, blocks.path)
    torch.testing.assert_close(sweep.states(len(blocks)).clone(), expected, rtol=1e-3, atol=1e-4)


def test_layers_that_share_an_input_share_the_statistic(imported: Callable[[str], Artifact]) -> None:
    artifact = imported("llama")
    blocks = Blocks(base.skeleton(artifact.config), artifact)
    states, calls = blocks.capture(IDS)
    with blocks.loaded(0), observing(blocks.linears(0), (Gram,)) as observed:
        blocks.run(0, states, calls[0])
        blocks.run(0, states, calls[0])
    grams = {name.split(".")[-2]: statistics[Gram] for name, statistics in observed.items()}
    assert grams["q_proj"] is grams["k_proj"] is grams["v_proj"]
    assert grams["gate_proj"] is grams["up_proj"]
    assert len({id(gram) for gram in grams.values()}) == 4
    assert {gram._sequences for gram in grams.values()} == {10}


def test_the_statistic_is_that_of_the_layers_own_input(imported: Callable[[str], Artifact]) -> None:
    artifact = imported("llama")
    blocks = Blocks(base.skeleton(artifact.config), artifact)
    states, calls = blocks.capture(IDS)
    with blocks.loaded(0) as block, observing(blocks.linears(0), (Gram,)) as observed:
        blocks.run(0, states, calls[0])
        inputs = block.get_submodule("input_layernorm")(states).flatten(0, 1)
    gram = observed["model.layers.0.self_attn.k_proj.weight"][Gram].value
    torch.testing.assert_close(gram, 2 / 5 * inputs.T @ inputs, rtol=1e-4, atol=1e-4)
