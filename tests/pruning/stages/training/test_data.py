"""Training and held-out ids: disjoint, seeded and sufficient."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pruning.data.documents import Document
from pruning.data.draw import ids_digest
from pruning.data.encoder import Encoder
from pruning.errors import DataError
from pruning.recipe.texts import WeightedText
from pruning.recipe.training import Distill
from pruning.stages.inputs import Inputs
from pruning.stages.training.data import draw_training_data


def found(ids: Tensor, text: Path, encoder: Encoder) -> set[str]:
    """The paragraphs whose numbers occur in `ids`."""
    stream = ",".join(map(str, ids.flatten().tolist()))
    start = len(encoder.encode(Document("", "Paragraph ")))
    bodies = text.read_text().split("\n\n")
    return {body for body in bodies if ",".join(map(str, encoder.encode(Document(body, body))[: start + 8])) in stream}


def test_no_text_is_both_trained_on_and_held_out(inputs: Inputs, text: Path) -> None:
    encoder = Encoder(inputs.base)
    data = draw_training_data(Distill(tokens=1024, length=32, batch=4, held_out=20), inputs)
    assert data.training.shape == (32, 32)
    assert data.held_out.shape == (20, 32)
    trained, held_out = found(data.training, text, encoder), found(data.held_out, text, encoder)
    assert len(trained) > 15
    assert len(held_out) > 8
    assert not trained & held_out
    assert {Document(body, body).bucket for body in trained | held_out} <= set(range(7))


def test_the_records_say_which_ids_they_were(inputs: Inputs) -> None:
    data = draw_training_data(Distill(tokens=1024, length=32, batch=4, held_out=6, seed=3), inputs)
    assert data.training_record.digest == ids_digest(data.training)
    assert (data.held_out_record.sequences, data.held_out_record.tokens, data.held_out_record.seed) == (6, 32, 3)
    again = draw_training_data(Distill(tokens=1024, length=32, batch=4, held_out=6, seed=3), inputs)
    other = draw_training_data(Distill(tokens=1024, length=32, batch=4, held_out=6, seed=4), inputs)
    assert torch.equal(again.training, data.training)
    assert other.training_record.digest != data.training_record.digest


def test_a_larger_budget_repeats_the_texts_reshuffled(inputs: Inputs, caplog: pytest.LogCaptureFixture) -> None:
    data = draw_training_data(Distill(tokens=8192, length=32, batch=4, held_out=6), inputs)
    assert data.training.numel() == 8192
    assert "the budget of 8192 tokens repeats the" in caplog.text
    ids = data.training.flatten().tolist()
    assert [at for at in range(len(ids) - 63) if ids[at : at + 64] == ids[:64]] == [0]


def test_an_absurd_budget_is_refused_before_it_fills_the_memory(inputs: Inputs) -> None:
    with pytest.raises(
        DataError, match=r"the budget of \d{15,} tokens would read the \d+ tokens .* more than 1000 times"
    ):
        draw_training_data(Distill(tokens=10**15, length=16, batch=2, held_out=2), inputs)


def test_a_duplicate_of_a_held_out_text_is_not_trained_on(inputs: Inputs, tmp_path: Path) -> None:
    source = tmp_path / "twice.jsonl"
    bodies = [f"Text {n} has a number of its own." for n in range(30)]
    source.write_text("".join(f'{{"title": "{copy}-{body}", "text": "{body}"}}\n' for copy in "ab" for body in bodies))
    stage = Distill(tokens=1024, length=32, batch=4, held_out=10, source=str(source), buckets=tuple(range(10)))
    data = draw_training_data(stage, inputs)
    encoder = Encoder(inputs.base)
    file = tmp_path / "bodies.txt"
    file.write_text("\n\n".join(bodies))
    assert not found(data.training, file, encoder) & found(data.held_out, file, encoder)


def test_another_source_and_other_buckets(inputs: Inputs, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = tmp_path / "other.txt"
    source.write_text("\n\n".join(f"{n} is another text." for n in range(300)))
    data = draw_training_data(
        Distill(tokens=256, length=32, batch=4, held_out=4, source=str(source), buckets=(9,)), inputs
    )
    assert data.training_record.source == str(source)
    assert "flatter" not in caplog.text
    draw_training_data(Distill(tokens=256, length=32, batch=4, held_out=4, buckets=(9,)), inputs)
    assert "training and evaluation share texts" in caplog.text


@pytest.mark.parametrize("held_out", [80, 200])
def test_too_few_texts_are_refused(inputs: Inputs, held_out: int) -> None:
    with pytest.raises(DataError, match=rf"too few to hold out {held_out} x 64 tokens and train on the others"):
        draw_training_data(Distill(tokens=64, length=64, batch=1, held_out=held_out), inputs)


def test_texts_are_mixed_by_weight_and_recorded_apart(inputs: Inputs, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("\n\n".join(f"Letter {n} asks what {n} costs." for n in range(60)))
    mixture = (WeightedText(str(text), tuple(range(7)), 3), WeightedText(str(other)))
    data = draw_training_data(Distill(tokens=1024, length=32, batch=4, held_out=4, sources=mixture), inputs)
    assert data.training.shape == (32, 32)
    assert [part.sequences for part in data.training_record.parts] == [24, 8]
    assert [part.sequences for part in data.held_out_record.parts] == [3, 1]
    alone = draw_training_data(Distill(tokens=256, length=32, batch=4, held_out=1, sources=mixture[1:]), inputs)
    assert alone.training_record.digest == data.training_record.parts[1].digest
    with pytest.raises(DataError, match=r"other.txt gets none of the 2 held-out sequences"):
        draw_training_data(Distill(tokens=1024, length=32, batch=4, held_out=2, sources=mixture), inputs)
