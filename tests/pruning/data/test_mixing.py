"""Sequences of several texts are mixed by weight, evenly and the same each time."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pruning.data.draw import data_record, ids_digest
from pruning.data.mixing import interleaved, mixed, shares
from pruning.errors import DataError
from pruning.recipe.recipe import Calibration, read, texts_or_calibration
from pruning.recipe.texts import WeightedText
from pruning.stages.inputs import prepare

SOURCES = """sources = [
  {{ source = "{one}", buckets = [0, 1, 2, 3, 4, 5, 6], weight = 3 }},
  {{ source = "{other}" }},
]"""


def texts(*weights: float) -> list[WeightedText]:
    return [WeightedText(str(number), weight=weight) for number, weight in enumerate(weights)]


def test_shares_are_those_of_the_largest_remainders() -> None:
    assert shares(texts(1), 7, "sequences") == [7]
    assert shares(texts(2, 1, 1), 32, "sequences") == [16, 8, 8]
    assert shares(texts(1, 1, 1), 32, "sequences") == [11, 11, 10]
    assert shares(texts(0.5, 0.3, 0.2), 9, "sequences") == [4, 3, 2]  # 4.5, 2.7 and 1.8


def test_a_text_that_gives_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 gets none of the 8 held-out sequences, with a weight of 0.01 in 1.01"):
        shares(texts(1, 0.01), 8, "held-out sequences")


def test_every_prefix_has_about_the_shares() -> None:
    parts = [torch.full((count, 2), number) for number, count in enumerate((16, 8, 8))]
    order = interleaved(parts)[:, 0].tolist()
    for length in range(1, 33):
        counts = Counter(order[:length])
        assert all(abs(counts[number] - length * share) <= 1 for number, share in enumerate((0.5, 0.25, 0.25)))


def test_each_part_keeps_its_order_and_its_digest() -> None:
    one, other = torch.arange(8).view(4, 2), torch.arange(100, 104).view(2, 2)
    parts = [(one, data_record("one", one, 0)), (other, data_record("other", other, 0))]
    ids, data = mixed(parts)
    assert torch.equal(ids[ids[:, 0] < 100], one)
    assert torch.equal(ids[ids[:, 0] >= 100], other)
    assert (data.source, data.sequences, data.digest) == ("one, other", 6, ids_digest(ids))
    assert [part.digest for part in data.parts] == [ids_digest(one), ids_digest(other)]
    assert mixed(parts[:1]) == parts[0]


def test_a_recipe_mixes_its_calibration_and_records_each_source(
    recipe: Callable[[], Path], text: Path, tmp_path: Path, base_cache: Path
) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(
        "".join(f'{{"title": "{n}", "text": "Letter {n} asks for the price of {n}."}}\n' for n in range(50))
    )
    path = recipe()
    old = f'source = "{text}"\nbuckets = [0, 1, 2, 3, 4, 5, 6]'
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, SOURCES.format(one=text, other=other)))
    inputs = prepare(read(path), base_cache)
    ids, data = inputs.calibration
    assert [part.sequences for part in data.parts] == [9, 3]
    assert [part.source for part in data.parts] == [str(text), str(other)]
    assert torch.equal(ids, prepare(read(path), base_cache).calibration[0])
    assert len(ids) == 12
    assert data.parts[1].digest == ids_digest(ids[[2, 6, 10]])  # in the middles of three thirds


def test_a_stage_takes_what_it_does_not_name_from_the_calibration() -> None:
    mixture = Calibration(sources=(WeightedText("a", (1, 2), 3), WeightedText("b", (4,))))
    single = Calibration("a", buckets=(1, 2))
    assert texts_or_calibration(None, None, mixture) == mixture.sources
    assert texts_or_calibration(None, (7,), mixture) == (WeightedText("a", (7,), 3), WeightedText("b", (7,)))
    assert texts_or_calibration("b", None, mixture) == (WeightedText("b", (4,)),)
    assert texts_or_calibration("c", None, mixture) == (WeightedText("c"),)
    assert texts_or_calibration("c", None, single) == (WeightedText("c", (1, 2)),)
