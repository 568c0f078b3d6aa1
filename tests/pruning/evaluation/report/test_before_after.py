"""The table of `secateur prune`: its notes."""

import pytest

from pruning.evaluation.report.before_after import _basis
from server.artifact.checkpoint.lineage import Data, EvaluatedText, Evaluation


@pytest.mark.parametrize(("windows", "warned"), [(2, True), (124, True), (125, False), (512, False)])
def test_a_perplexity_on_few_tokens_is_warned_of(windows: int, warned: bool) -> None:
    data = Data("text.txt", "", windows, 16, 0)
    said = _basis(Evaluation(data, 16, {}, {}))
    assert said.startswith(f"perplexity on {windows} windows of 16 tokens")
    assert (f"; warning: {windows * 16:,} tokens are too few to compare models by" in said) == warned
    others = (EvaluatedText("letters", data, {}),)
    named = _basis(Evaluation(data, 16, {}, {}, name="leads", others=others))
    assert ("; warning: " in named) == warned
