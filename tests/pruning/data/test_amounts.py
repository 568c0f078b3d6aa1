"""How much text a recipe's sources hold, beside a plain count."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pruning.data.amounts import amounts, refuse_small
from pruning.data.documents import read as documents
from pruning.errors import DataError
from pruning.recipe.recipe import read

Write = Callable[..., Path]


def test_bytes_are_those_of_the_buckets(recipe: Write, text: Path) -> None:
    calibration, evaluation = amounts(read(recipe()))
    parts = [paragraph for paragraph in text.read_text().split("\n\n") if paragraph]
    assert calibration.bytes + evaluation.bytes == sum(len(part.encode()) for part in parts)
    buckets = {document.body: document.bucket for document in documents(text, str)}
    assert evaluation.bytes == sum(len(part.encode()) for part in parts if buckets[part] >= 7)
    assert (calibration.sequences, calibration.tokens) == (12, 32)
    assert (evaluation.sequences, evaluation.tokens) == (4, 32)
    assert not calibration.too_small
    assert not evaluation.is_doubtful


def test_a_mixture_is_asked_for_its_shares(recipe: Write, text: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.txt"
    other.write_text("One line.")
    path = recipe()
    sources = f'sources = [{{ source = "{text}", weight = 3 }}, {{ source = "{other}" }}]\nsequences'
    path.write_text(
        path.read_text()
        .replace(f'source = "{text}"\nbuckets = [0, 1, 2, 3, 4, 5, 6]\n', "", 1)
        .replace("sequences", sources, 1)
    )
    first, second, _ = amounts(read(path))
    assert (first.sequences, second.sequences) == (9, 3)
    assert second.too_small
    with pytest.raises(DataError, match=r"other.txt holds 9 bytes in 1 texts .* needs 3 x 32 = 96 tokens: add text"):
        refuse_small(read(path))


def test_messages_count_with_the_markup_of_a_template(recipe: Write, text: Path, tmp_path: Path) -> None:
    chat = tmp_path / "chat.jsonl"
    lines = [json.dumps({"question": f"{number} or not?", "answer": "It is."}) for number in range(100)]
    chat.write_text("\n".join(lines))
    path = recipe()
    path.write_text(path.read_text().replace(str(text), str(chat)))
    calibration, evaluation = amounts(read(path))
    assert calibration.bytes < 12 * 32 * 4
    assert not calibration.is_doubtful
    assert not evaluation.is_doubtful


def test_a_conversation_is_never_refused_since_its_template_adds_text(
    recipe: Write, text: Path, tmp_path: Path
) -> None:
    chat = tmp_path / "chat.jsonl"
    chat.write_text(json.dumps({"question": "Why?", "answer": "So."}))
    path = recipe()
    path.write_text(path.read_text().replace(str(text), str(chat)))
    found = list(amounts(read(path)))
    assert [amount.bytes for amount in found if amount.documents] == [len("Why?\nSo.")]
    assert not any(amount.too_small for amount in found if amount.documents)
    assert all(amount.is_doubtful for amount in found)
