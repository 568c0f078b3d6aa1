from math import ceil

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pruning.techniques.mathematics.patterns import drop_lowest, keep_matrix, keep_nm, keep_rows
from pruning.techniques.mathematics.sparsity import NMPattern, nm_pattern


@st.composite
def scores(draw: st.DrawFn) -> torch.Tensor:
    """A matrix with many ties."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 150))
    values = draw(st.lists(st.integers(0, 3), min_size=rows * columns, max_size=rows * columns))
    return torch.tensor(values, dtype=torch.float32).view(rows, columns)


@given(scores(), st.floats(0.01, 0.99))
def test_each_row_loses_exactly_its_fraction(score: torch.Tensor, fraction: float) -> None:
    keep = keep_rows(score, fraction)
    assert ((~keep).sum(dim=1) == int(score.shape[1] * fraction)).all()


@given(scores(), st.floats(0.01, 0.99))
def test_the_matrix_loses_exactly_its_fraction(score: torch.Tensor, fraction: float) -> None:
    keep = keep_matrix(score, fraction)
    assert (~keep).sum() == int(score.numel() * fraction)
    if keep.any() and not keep.all():
        assert score[keep].min() >= score[~keep].max()


@given(scores(), st.integers(2, 64), st.data())
def test_every_group_keeps_exactly_n_of_m(score: torch.Tensor, columns: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, columns - 1))
    keep = keep_nm(score, NMPattern(count, columns))
    for start in range(0, score.shape[1], columns):
        group = keep[:, start : start + columns]
        width = group.shape[1]
        assert (group.sum(dim=1) == (count if width == columns else ceil(width * count / columns))).all()
        for row, kept in zip(score[:, start : start + columns], group, strict=True):
            if not kept.all():
                assert row[kept].min() >= row[~kept].max()


def test_of_equal_scores_the_lower_index_goes_first() -> None:
    score = torch.tensor([[1.0, 1, 1, 1], [2, 1, 1, 1]])
    assert keep_rows(score, 0.5).tolist() == [[False, False, True, True], [True, False, False, True]]
    assert keep_rows(score, "2:4").tolist() == keep_rows(score, 0.5).tolist()
    assert keep_matrix(torch.ones(2, 2), 0.5).tolist() == [[False, False], [True, True]]


def test_ties_are_broken_alike_in_long_rows() -> None:
    assert drop_lowest(torch.zeros(3, 5000), 1234)[:, :1234].any().item() is False


@given(scores(), st.data())
def test_a_threshold_and_a_stable_sort_give_the_same_mask(score: torch.Tensor, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, score.shape[1]))
    for values in (score, score + torch.rand(score.shape)):  # with ties and, nearly always, without
        expected = numpy.ones(values.shape, dtype=bool)
        lowest = numpy.argsort(values.numpy(), axis=1, kind="stable")[:, :count]
        numpy.put_along_axis(expected, lowest, False, axis=1)
        assert drop_lowest(values, count).tolist() == expected.tolist()


def test_a_pattern_of_n_of_m_is_parsed() -> None:
    assert nm_pattern(0.5) is None
    assert nm_pattern("32:64") == NMPattern(32, 64)


@pytest.mark.parametrize("text", ["", "2", "2:2", "0:4", "1:65", "2:4:8", "-1:4", "a:b", "2 : 4"])
def test_other_spellings_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is neither a fraction"):
        nm_pattern(text)
