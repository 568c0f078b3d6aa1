"""Two tokenisations of one text, against positions and sums counted by hand."""

import pytest
import torch
from tokenizers import Tokenizer, models

from pruning.data.retokenise import Retokeniser
from pruning.stages.training.distil.alignment import Alignment

BEFORE = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}, merges=[("a", "b"), ("ab", "c")]))
AFTER = Tokenizer(models.BPE(vocab={"c": 0, "b": 1, "a": 2}, merges=[]))


@pytest.fixture
def alignment() -> Alignment:
    """From five tokens and a row without one to three tokens."""
    return Alignment(Retokeniser(BEFORE, AFTER), 6, 3)


def test_ends_and_insides_are_those_of_the_first_tokens(alignment: Alignment) -> None:
    aligned = alignment.align(torch.tensor([[0, 4, 1], [3, 2, 3]]))
    assert aligned.ids.tolist() == [[2, 2, 1, 0, 1], [2, 1, 0, 2, 1]]
    assert aligned.ends.tolist() == [0, 3, 4, 5 + 1, 5 + 2, 5 + 4]
    assert aligned.inside.tolist() == [1, 2, 5 + 3], "the first token of a row is not predicted"
    assert aligned.following.tolist() == [1, 0, 1]


def test_shorter_rows_are_padded_at_the_end(alignment: Alignment) -> None:
    aligned = alignment.align(torch.tensor([[4, 4], [0, 1]]))
    assert aligned.ids.tolist() == [[2, 1, 0, 2, 1, 0], [2, 1, 0, 0, 0, 0]]
    assert aligned.ends.tolist() == [2, 5, 6, 7]


def test_tokens_with_the_same_beginning_add_up(alignment: Alignment) -> None:
    logits = torch.randn(2, 40, 6, generator=torch.Generator().manual_seed(0))
    chances = logits.double().softmax(dim=-1)
    a, b, c, ab, abc, _ = chances.unbind(-1)
    expected = torch.stack([c, b, a + ab + abc], dim=-1).log()
    torch.testing.assert_close(alignment.fold(logits).double(), expected, rtol=1e-5, atol=1e-5)
