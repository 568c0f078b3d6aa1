"""The loss of a layer against the outputs themselves, in double precision and with no Gram matrix."""

import pytest
import torch

from pruning.passes.statistics import Gram, InputNorm, InputStatistics
from pruning.techniques import SparseGPT, Wanda
from pruning.techniques.mathematics.losses import effective_rank, layer_loss

X = torch.randn(3, 40, 16, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 3, 16)
W = torch.randn(8, 16, generator=torch.Generator().manual_seed(1))


def observed(*needs: type[Gram] | type[InputNorm]) -> InputStatistics:
    statistics = InputStatistics(needs, 16)
    statistics.update(X)
    return statistics


def square(weight: torch.Tensor) -> float:
    return float((X.double() @ weight.double().T).square().sum())


def test_with_a_gram_matrix_it_is_the_error_of_the_outputs() -> None:
    pruned = W.clone()
    SparseGPT("2:4").apply(pruned, observed(Gram))
    loss = layer_loss(W, pruned, observed(Gram))
    assert loss.error == pytest.approx(square(W - pruned) / square(W), rel=1e-5)
    norms = X.double().square().sum(dim=(0, 1)).sqrt()
    energy = (W.double() * norms).square()
    assert loss.removed == pytest.approx(float(energy[pruned == 0].sum() / energy.sum()), rel=1e-5)
    score = W.double().abs() * norms
    assert loss.outliers == float((score > 5 * score.mean()).sum()) / 128
    eigenvalues = torch.linalg.eigvalsh(X.double().flatten(0, 1).T @ X.double().flatten(0, 1))
    assert loss.rank == pytest.approx(float(eigenvalues.sum() ** 2 / eigenvalues.square().sum()) / 16, rel=1e-4)
    assert loss.measure == "gram"


def test_with_norms_alone_inputs_are_treated_as_uncorrelated() -> None:
    pruned = W.clone()
    Wanda("2:4").apply(pruned, observed(InputNorm))
    loss = layer_loss(W, pruned, observed(InputNorm))
    one_by_one = [float((X.double()[..., j, None] * (W - pruned).double()[:, j]).square().sum()) for j in range(16)]
    whole = [float((X.double()[..., j, None] * W.double()[:, j]).square().sum()) for j in range(16)]
    assert loss.error == pytest.approx(sum(one_by_one) / sum(whole), rel=1e-5)
    assert loss.error == pytest.approx(loss.removed, rel=1e-6)  # nothing makes up for what a mask alone removes
    assert (loss.measure, loss.rank) == ("diagonal", None)


def test_without_inputs_it_is_the_change_of_the_weights_and_says_so() -> None:
    loss = layer_loss(W, W.masked_fill(W < 0, 0), observed())
    assert loss.error == pytest.approx(float(W[W < 0].square().sum() / W.square().sum()), rel=1e-5)
    assert loss.measure == "weights"
    nothing = torch.zeros(2, 16)
    assert layer_loss(nothing, nothing, observed()).error == 0


def test_the_rank_of_equal_inputs_is_one_direction() -> None:
    assert effective_rank(torch.eye(4)) == pytest.approx(1)
    assert effective_rank(torch.ones(4, 4)) == pytest.approx(1 / 4)
