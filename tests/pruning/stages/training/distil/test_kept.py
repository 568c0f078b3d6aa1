"""Distillation of a model whose matrices have codes of their own: bits, groups, schemes and patterns are kept."""

from collections.abc import Callable
from itertools import cycle
from pathlib import Path

import msgspec
import pytest
import torch
from torch import Tensor

from pruning.commands.__main__ import main
from pruning.errors import ModelRefused, RecipeError
from pruning.model.weights import Overlay, WeightSource, write_file
from pruning.recipe.options import Round
from pruning.recipe.recipe import read
from pruning.recipe.training import Quantise
from pruning.stages.context import StageContext, StageModel
from pruning.stages.inputs import Inputs
from pruning.stages.layerwise import round_to_nearest
from pruning.stages.training.distil.distillation import apply
from pruning.stages.training.distil.kept import StoredValues, kept_codes
from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.quantised import pack_quantised
from server.artifact.checkpoint.reader import Artifact
from tests.pruning.stages.training.distil.test_quantised import STAGE, slowly_rounded, student
from tests.reference import slow_rounding

KEPT = msgspec.structs.replace(STAGE, quantise="kept")
FORMATS = [(4, 32, 32), (3, 64, 64), (6, 32, 24), (3, 128, 40), (8, 128, 48), (5, 64, 64)]
"""Bits, groups, and values kept of every 64, given to the matrices in turns."""


Formats = dict[str, tuple[int, int, int]]


def pruned_and_rounded(weight: Tensor, bits: int, group: int, keep: int) -> tuple[Tensor, Tensor]:
    """`weight` [outputs, inputs] with its largest values of each run, on scales from the largest of each group."""
    runs = weight.view(len(weight), -1, 64)
    weight = runs.scatter(2, runs.abs().topk(64 - keep, dim=2, largest=False).indices, 0.0).view_as(weight)
    starts = range(0, weight.shape[1], group)
    largest = torch.stack([weight[:, start : start + group].abs().amax(dim=1) for start in starts], dim=1)
    scales = (largest / (2 ** (bits - 1) - 1)).half()
    return slowly_rounded(weight, bits, group, scales.float()).bfloat16(), scales


@pytest.fixture(scope="module")
def formats(inputs: Inputs) -> Formats:
    """Bits, group and values kept of every 64, by matrix."""
    return dict(zip((name for name in inputs.base.names() if "_proj" in name), cycle(FORMATS), strict=False))


@pytest.fixture(scope="module")
def mixed(inputs: Inputs, formats: Formats, tmp_path_factory: pytest.TempPathFactory) -> StageModel:
    """A model of which no two neighbouring matrices have the same codes."""
    tensors: dict[str, Tensor] = {}
    for name, format in formats.items():
        tensors[name], tensors[f"{name}.scales"] = pruned_and_rounded(inputs.base.tensor(name).float(), *format)
    file = tmp_path_factory.mktemp("mixed") / "blocks.safetensors"
    write_file(file, tensors)
    return StageModel(inputs.base.config, Overlay(inputs.base, [file]))


def test_each_matrix_is_projected_onto_its_own_pattern_and_codes(
    mixed: StageModel, formats: Formats, inputs: Inputs
) -> None:
    rounded = student(mixed, inputs, KEPT, StoredValues(mixed.source))
    start = rounded.weights()
    for name in formats:
        assert torch.equal(start[name], mixed.source.tensor(name)), name
    torch.manual_seed(1)
    for parameter in rounded.parameters.values():
        parameter.data += 0.3 * parameter.data.std() * torch.randn_like(parameter)
    rounded.update(1)  # no step of a refit
    after = rounded.weights()
    for name, (bits, group, keep) in formats.items():
        scales, master = after[f"{name}.scales"], rounded.parameters[name].data
        before = mixed.source.scales(name)
        assert before is not None
        assert torch.equal(scales, before), name
        assert torch.equal(after[name].float(), slowly_rounded(master, bits, group, scales.float())), name
        runs = after[name].view(len(master), -1, 64)
        assert int((runs != 0).sum(dim=2).max()) <= keep, name
        layout = pack_quantised(after[name], scales)[0]
        assert (layout.bits, layout.keep or 64) == (bits, keep), name


def test_values_of_a_run_that_rounded_to_zero_may_grow_again(
    mixed: StageModel, formats: Formats, inputs: Inputs
) -> None:
    source, zeros = StoredValues(mixed.source), 0
    for name, (_, _, keep) in formats.items():
        zeros += int((mixed.source.tensor(name).view(-1, 64) != 0).sum(dim=1).lt(keep).sum()) if keep < 64 else 0
        places = (source.tensor(name) != 0).view(-1, 64)
        before = inputs.base.tensor(name).float().view(-1, 64)
        assert places.sum(dim=1).tolist() == [keep] * len(places), name
        for place, row in zip(places.tolist(), before.abs().tolist(), strict=True):
            chosen = sorted(value for stored, value in zip(place, row, strict=True) if stored)
            assert chosen == sorted(row)[64 - keep :], name
    assert zeros


def test_a_uniform_model_is_trained_as_with_its_bits_given(inputs: Inputs, halved: StageModel, tmp_path: Path) -> None:
    stage = Round(bits=4, group=32, what="blocks")
    model = round_to_nearest.apply(stage, halved, StageContext(inputs, tmp_path / "round"))[0]
    given = msgspec.structs.replace(STAGE, quantise=Quantise(bits=4, group=32))
    expected, _ = apply(given, model, StageContext(inputs, tmp_path / "given"))
    result, step = apply(KEPT, model, StageContext(inputs, tmp_path / "kept"))
    assert step.recovery is not None
    assert not step.recovery.rolled_back
    for name in model.source.names():
        assert torch.equal(result.source.tensor(name), expected.source.tensor(name)), name
        one, other = result.source.scales(name), expected.source.scales(name)
        assert (one is None and other is None) or torch.equal(one, other), name  # type: ignore[arg-type]


def test_codes_with_minimums_are_kept(inputs: Inputs, tmp_path: Path) -> None:
    stage = Round(bits=4, group=32, what="blocks", scheme="asymmetric")
    model = round_to_nearest.apply(stage, StageModel(inputs.base.config, inputs.base), StageContext(inputs, tmp_path))[
        0
    ]
    name = "model.layers.1.mlp.up_proj.weight"
    assert kept_codes(name, model.source) == Quantise(bits=4, group=32, scheme="asymmetric")
    assert torch.equal(student(model, inputs, KEPT).weights()[name], model.source.tensor(name))


ALLOCATED = """
[[stages]]
kind = "layerwise"
technique = { name = "gptq", bits = 4, group = 32, sparsity = "32:64" }
allocation = { name = "fisher", bits = [3, 5, 6], sequences = 2 }
"""
DISTILLED = """
[[stages]]
kind = "distill"
tokens = 2048
length = 32
batch = 2
held_out = 4
interval = 8
learning_rate = 3e-4
quantise = "kept"
"""


def test_a_model_with_allocated_bits_is_recovered_in_its_own_bytes(
    recipe: Callable[[str], Path], tmp_path: Path
) -> None:
    found = []
    for name, stages in {"pruned": ALLOCATED, "recovered": ALLOCATED + DISTILLED}.items():
        output = tmp_path / name
        assert (
            main(["prune", str(recipe(stages)), "--output", str(output), "--base-cache", str(tmp_path / "base")]) == 0
        )
        found.append(Artifact.open(output))
    pruned, recovered = found
    layouts = {name: layout for name in pruned.names() if isinstance(layout := pruned.layout(name), Quantised)}
    assert len({(layout.bits, layout.keep) for layout in layouts.values()}) > 2
    for name, layout in layouts.items():
        after = recovered.layout(name)
        assert isinstance(after, Quantised)
        assert (after.group, after.bits <= layout.bits, (after.keep or 64) <= (layout.keep or 64)) == (32, True, True)
    step = recovered.lineage.steps[-1].recovery
    assert step is not None
    assert step.after < step.before


WANDA = "[[stages]]\nkind = 'layerwise'\ntechnique = { name = 'wanda', sparsity = '2:4' }\n"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        (DISTILLED, 'stage 1, distill, has quantise = "kept", but the base leaves the blocks at 16 bits'),
        (
            ALLOCATED + WANDA + DISTILLED,
            "stage 3, distill, .*, but stage 2, layerwise, leaves the blocks at 16",
        ),
    ],
)
def test_a_model_at_16_bits_is_refused_before_any_work(
    recipe: Callable[[str], Path], stages: str, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        read(recipe(stages))


def test_a_file_may_hold_the_codes_that_are_kept(recipe: Callable[[str], Path]) -> None:
    path = recipe(DISTILLED)
    base = next(line for line in path.read_text().splitlines() if line.startswith("base"))
    path.write_text(path.read_text().replace(base, 'base = "package:module/model.gguf"'))
    assert read(path).base.endswith("gguf")
    path.write_text(path.read_text().replace('base = "package', 'base = "off-grid:package'))
    with pytest.raises(RecipeError, match="the base leaves the blocks at 16 bits"):
        read(path)


def test_a_matrix_without_codes_is_named(inputs: Inputs, halved: StageModel) -> None:
    with pytest.raises(ModelRefused, match=r"model\.layers\.0\..* is not quantised.*quantise all blocks before"):
        student(halved, inputs, KEPT)


def test_codes_of_a_table_are_told_by_their_values() -> None:
    torch.manual_seed(0)
    codes = torch.tensor([-8, -5, -3, -1, 0, 2, 4, 7])[torch.randint(8, (64, 64))]
    scales = torch.full((64, 2), 0.01).half()
    spread = scales.float().repeat_interleave(32, dim=1)

    class OneMatrix(WeightSource):
        def names(self) -> list[str]:
            return ["w"]

        def tensor(self, name: str) -> Tensor:
            return (codes * spread).bfloat16()

        def scales(self, name: str) -> Tensor | None:
            return scales

    assert pack_quantised(OneMatrix().tensor("w"), scales)[0].levels is not None
    assert kept_codes("w", OneMatrix()).bits == 4
    assert slow_rounding.code(0.07, 0.01, 4) == 7
