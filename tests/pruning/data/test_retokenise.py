"""Windows in the ids of a smaller vocabulary, against counts by hand."""

import pytest
import torch
from tokenizers import Tokenizer, models

from pruning.data.retokenise import retokenise

BEFORE = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "c": 2, "ab": 3, "abc": 4}, merges=[("a", "b"), ("ab", "c")]))
AFTER = Tokenizer(models.BPE(vocab={"c": 0, "b": 1, "a": 2, "ab": 3}, merges=[("a", "b")]))
WITHOUT = Tokenizer(models.BPE(vocab={"c": 0, "b": 1, "a": 2}, merges=[]))


def test_a_removed_token_becomes_kept_ones_and_those_of_the_first_are_not_predicted() -> None:
    windows = torch.tensor([[4, 0, 1], [2, 3, 4]])
    spelt = retokenise(windows, BEFORE, AFTER)
    assert spelt.ids.tolist() == [[3, 0, 2, 1], [0, 3, 3, 0]]
    assert spelt.predicted == [slice(2, 4), slice(1, 4)]
    assert retokenise(windows, BEFORE, WITHOUT).predicted == [slice(3, 5), slice(1, 6)]
    assert retokenise(windows, BEFORE, WITHOUT).ids.tolist()[0][:5] == [2, 1, 0, 2, 1]


def test_the_loss_is_per_token_of_the_first_tokenizer() -> None:
    spelt = retokenise(torch.tensor([[4, 0, 1], [2, 3, 4]]), BEFORE, AFTER)
    logits = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    chances = logits.double().softmax(dim=-1)
    expected = -(chances[1, 2].log() + chances[2, 1].log()) / 2  # "a" after "abc", "b" after that
    assert float(spelt.loss(0, logits)) == pytest.approx(float(expected), rel=1e-5)
