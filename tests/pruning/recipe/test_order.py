"""The warning about undone quantisation comes before any work, and is right."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from pruning.commands.__main__ import main
from pruning.recipe.options import Stage
from pruning.recipe.order import refuse_lost_zeros, undone_quantisations
from server.artifact.checkpoint.reader import Artifact
from tests.exams.outages.stages import STAGES

pytestmark = pytest.mark.slow

ROUNDED = {
    "blocks": '[[stages]]\nkind = "round"\nbits = 4\ngroup = 32\nwhat = "blocks"\n',
    "embeddings": '[[stages]]\nkind = "round"\nbits = 4\ngroup = 32\n',
}
KINDS = ("wanda", "gptq", "width by second_order", "reconstruct", "distill codes", "shear")


def stages(text: str) -> list[Stage]:
    """The stages of a recipe's text."""
    return msgspec.convert(msgspec.toml.decode(text)["stages"], list[Stage])


def sentences(text: str) -> list[str]:
    """The warnings about a recipe with these stages."""
    return list(undone_quantisations(stages(text)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_warned_stage_does_undo_the_quantisation(
    recipe: Callable[[str], Path], tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    own = STAGES[kind].split("\n[[stages]]\n")[-1]  # without the stage that prunes first
    text = "".join(ROUNDED.values()) + "[[stages]]\n" + own
    path, output = recipe(text), tmp_path / "out"
    assert main(["prune", str(path), "--output", str(output), "--base-cache", str(tmp_path)]) == 0
    artifact = Artifact.open(output)
    matrices = [name for name in artifact.names() if name.endswith("weight") and "norm" not in name]
    plain = {"blocks" if "layers" in name else "embeddings" for name in matrices if artifact.scales(name) is None}
    said = sentences(text)
    told = {what for what in ROUNDED if any(f"returns the {what} to" in sentence for sentence in said)}
    assert plain == (set() if "rolled back" in caplog.text else told)
    if plain:
        assert caplog.text.index(said[0]) < caplog.text.index("quantised weights are at")


def test_a_sentence_names_both_stages() -> None:
    text = ROUNDED["blocks"] + "[[stages]]\n" + STAGES["wanda"]
    expected = "stage 2, layerwise, returns the blocks to 16 bits, which stage 1, round, quantised: quantise last"
    assert sentences(text) == [expected]
    assert sentences(text + "\n" + "".join(ROUNDED.values())) == [expected]


LAYERWISE = '[[stages]]\nkind = "layerwise"\ntechnique = { name = %s }\n'
PRUNE, DENSE = LAYERWISE % '"wanda", sparsity = "2:4"', LAYERWISE % '"gptq"'
ASYMMETRIC = {
    "round": '[[stages]]\nkind = "round"\nbits = 4\nwhat = "blocks"\nscheme = "asymmetric"\n',
    "awq": '[[stages]]\nkind = "awq"\nscheme = "asymmetric"\n',
    "layerwise": '[[stages]]\nkind = "layerwise"\ntechnique = { name = "gptq", scheme = "asymmetric" }\n',
    "distill": '[[stages]]\nkind = "distill"\ntokens = 9\nquantise = { scheme = "asymmetric" }\n',
}


@pytest.mark.parametrize("kind", ASYMMETRIC)
def test_asymmetric_codes_after_pruning_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=rf"stage 2, {kind}, has asymmetric codes, .*would not stay zero"):
        refuse_lost_zeros(stages(PRUNE + ASYMMETRIC[kind]))
    refuse_lost_zeros(stages(DENSE + ASYMMETRIC[kind]))
    refuse_lost_zeros(stages(ASYMMETRIC[kind] + PRUNE))
    refuse_lost_zeros(stages(PRUNE + '[[stages]]\nkind = "round"\nbits = 4\nscheme = "asymmetric"\n'))
