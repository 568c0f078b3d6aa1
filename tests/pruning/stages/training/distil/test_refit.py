"""A model with fewer tokens learns from its base what removed tokens fall into."""

from pathlib import Path

import msgspec
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from pruning.data.retokenise import Retokeniser
from pruning.model import base
from pruning.recipe.fitting import Fit
from pruning.recipe.options import Vocabulary
from pruning.recipe.recipe import read
from pruning.stages.context import StageContext, StageModel
from pruning.stages.inputs import Inputs, prepare
from pruning.stages.training.data import draw_training_data
from pruning.stages.training.distil.refit import refit, rich_data
from pruning.stages.vocabulary import vocabulary
from tests.pruning.stages.vocabulary.test_vocabulary import STAGE, recipe, save

FIT = Fit(tokens=2048, length=32, held_out=4, interval=8, learning_rate=3e-3, candidates=2)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> tuple[StageModel, Inputs, Retokeniser]:
    """A model without half of its tokens, its base, and how to write the base's ids."""
    folder = tmp_path_factory.mktemp("refit")
    path = recipe(save(folder / "model"), folder, STAGE + "keep = 320\n")
    inputs = prepare(read(path), folder / "base")
    model, _ = vocabulary.apply(
        Vocabulary(keep=320), StageModel(inputs.base.config, inputs.base), StageContext(inputs, folder / "stage")
    )
    before = Tokenizer.from_file(str(inputs.base.path / "tokenizer.json"))
    return model, inputs, Retokeniser(before, Tokenizer.from_str(model.files["tokenizer.json"]))


def slow_loss(student: nn.Module, teacher: nn.Module, row: list[int], retokeniser: Retokeniser) -> float:
    """The loss of one sequence, token by token, in float64."""
    pieces = [retokeniser.parts(id) for id in row]
    ids = [id for part in pieces for id in part]
    with torch.no_grad():
        given = student(input_ids=torch.tensor([ids])).logits[0].double().log_softmax(-1)
        taught = teacher(input_ids=torch.tensor([row])).logits[0].double().softmax(-1)
    total, at = 0.0, -1
    for place, part in enumerate(pieces):
        if place:
            total -= sum(float(given[at + n, id]) for n, id in enumerate(part) if n)
        at += len(part)
        expected = torch.zeros(given.shape[1], dtype=torch.float64)
        for id, chance in enumerate(taught[place]):
            if found := retokeniser.parts(id):
                expected[found[0]] += chance
        expected /= expected.sum()  # rows without a token are no text's
        total += float((expected * (expected.log() - given[at])).nansum())
    return total / len(row)


def held_out(inputs: Inputs) -> Tensor:
    return draw_training_data(FIT, inputs).held_out


def test_the_loss_is_that_of_the_formula_and_falls(cut: tuple[StageModel, Inputs, Retokeniser], tmp_path: Path) -> None:
    model, inputs, retokeniser = cut
    fitted, reached = refit(FIT, model, inputs, retokeniser, tmp_path)
    teacher = base.load(inputs.base.config, inputs.base, torch.float32)
    for result, score in ((model, reached.before), (fitted, reached.after)):
        student = base.load(result.config, result.source, torch.float32)
        losses = [slow_loss(student, teacher, row, retokeniser) for row in held_out(inputs).tolist()]
        assert sum(losses) / len(losses) == pytest.approx(score, rel=0.02), "apart from bfloat16"
    assert reached.after < 0.9 * reached.before
    assert fitted.files == model.files


def test_embeddings_alone_leave_the_blocks_as_they_are(
    cut: tuple[StageModel, Inputs, Retokeniser], tmp_path: Path
) -> None:
    model, inputs, retokeniser = cut
    fit = msgspec.structs.replace(FIT, weights="embeddings")
    fitted, reached = refit(fit, model, inputs, retokeniser, tmp_path)
    assert reached.after < reached.before
    changed = {
        name for name in model.source.names() if not torch.equal(fitted.source.tensor(name), model.source.tensor(name))
    }
    assert changed == {"model.embed_tokens.weight"}


def test_the_sequences_have_most_removed_tokens_and_begin_as_the_base_begins_a_text(
    cut: tuple[StageModel, Inputs, Retokeniser],
) -> None:
    _, inputs, retokeniser = cut
    rich = rich_data(FIT, inputs, retokeniser).training
    drawn = draw_training_data(msgspec.structs.replace(FIT, tokens=2 * 2048), inputs).training
    assert rich.shape == (64, 32)
    assert (rich[:, 0] == 599).all()

    def removed(rows: Tensor) -> list[int]:
        return sorted(sum(len(retokeniser.parts(id)) > 1 for id in row) for row in rows.tolist())

    assert removed(rich) == removed(drawn)[-64:]
