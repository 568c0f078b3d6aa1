"""Questions with several right answers: none of them is a distractor, and a reply with any of them is right."""

from typing import Any

import pytest
import torch

from pruning.evaluation.comparison.gates import judge
from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.scoring.plans.answers import PairsPlan, options_of
from pruning.evaluation.scoring.plans.plan import LoadedModel
from pruning.evaluation.tasks.task import Pair, PairsTask
from pruning.recipe.bounds import Gates

ITEMS = (
    Pair(id="1", question="Who?", answer="Ada.", answers=("Ada.", "Lovelace", "The Countess")),
    Pair(id="2", question="What?", answer="Lovelace"),
    Pair(id="3", question="When?", answer="1843"),
)


class Bytes:
    """Prompts of bytes."""

    def question(self, text: str) -> tuple[int, ...]:
        return tuple(f"Q {text} A".encode())

    answer = staticmethod(lambda text: tuple(text.encode()))
    decode = staticmethod(lambda ids: bytes(ids).decode())


class Replies:
    """A scorer that replies the given texts."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def replies(self, prompts: Any, tokens: int, stop_ids: Any, step: Any) -> list[tuple[int, ...]]:
        return [tuple(text.encode()) for text in self.texts]

    def log_likelihoods(self, jobs: Any, step: Any) -> list[list[Any]]:
        return [[torch.full((len(request.target),), -1.0) for request in job] for job in jobs]


def said(*texts: str) -> Scores:
    """The scores of replies to `ITEMS`."""
    prompts: Any = Bytes()
    scorer: Any = Replies(*texts)
    return PairsPlan(PairsTask(name="a", items=ITEMS, greedy=8, choices=0), prompts).run(
        LoadedModel(scorer, frozenset()), None, lambda: None
    )


def test_no_right_answer_is_a_distractor() -> None:
    task = PairsTask(name="a", items=ITEMS, choices=2)
    pool = sorted({item.answer for item in ITEMS})
    assert options_of(ITEMS[0], pool, task) == ["Ada.", "1843"]
    assert sorted(options_of(ITEMS[2], pool, PairsTask(name="a", items=ITEMS, choices=3))) == pool


def test_a_reply_with_any_right_answer_is_right() -> None:
    scores = said("It was the countess, of course", "ada", "1843")
    assert scores.measures["contained"] == (1, 0, 1)
    assert scores.measures["exact"] == (0, 0, 1)
    assert said("LOVELACE!", "", "").measures["exact"] == (1, 0, 0)


def test_drops_of_greedy_replies_are_gated_by_the_worse_bound() -> None:
    base, pruned = said("Ada.", "Lovelace", "1843"), said("Ada.", "none", "in 1843")
    gates = Gates(max_exact_drop=0.7, max_contained_drop=1)
    exact, contained = judge(PairsTask(name="a", items=ITEMS, greedy=8, gates=gates), pruned, base)
    assert (exact.gate, contained.gate) == ("max_exact_drop", "max_contained_drop")
    assert exact.measured.value == pytest.approx(2 / 3)
    assert contained.measured.value == pytest.approx(1 / 3)
    assert not exact.passed  # 2/3 is below the limit, but its bound is not
    assert contained.passed
