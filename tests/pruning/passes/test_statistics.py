import logging

import numpy
import pytest
import torch

from pruning.errors import ModelRefused
from pruning.passes.statistics import BlockInfluence, Gram, InputMean, InputNorm


def batches(columns: int = 12) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 30, columns, generator=generator) for count in (4, 4, 3)]


def test_input_norm_is_the_root_of_the_mean_over_sequences_of_the_sum_of_squares() -> None:
    norm = InputNorm(12)
    for batch in batches():
        norm.update(batch)
    mean = numpy.zeros(12)
    for count, sequence in enumerate(numpy.concatenate([batch.double().numpy() for batch in batches()])):
        mean = mean * count / (count + 1) + (sequence**2).sum(axis=0) / (count + 1)  # Wanda's running mean
    numpy.testing.assert_allclose(norm.value, numpy.sqrt(mean), rtol=1e-6)


def test_mean_and_variance_are_over_all_tokens() -> None:
    observed, inputs = InputMean(12), numpy.concatenate([batch.double().numpy() for batch in batches()]).reshape(-1, 12)
    for batch in batches():
        observed.update(batch + 1000)
    numpy.testing.assert_allclose(observed.mean, inputs.mean(axis=0) + 1000, rtol=1e-6)
    numpy.testing.assert_allclose(observed.variance, inputs.var(axis=0), rtol=1e-3)


@pytest.mark.parametrize("columns", [12, 384, 400, 900])
def test_gram_is_two_over_n_times_the_sum_of_products(columns: int) -> None:
    gram = Gram(columns)
    for batch in batches(columns):
        gram.update(batch)
    inputs = numpy.concatenate([batch.double().numpy().reshape(-1, columns) for batch in batches(columns)])
    assert torch.equal(gram.value, gram.value.T)
    numpy.testing.assert_allclose(gram.value, 2 / 11 * inputs.T @ inputs, rtol=1e-4, atol=1e-5)


def test_inverse_factor_is_the_upper_factor_of_the_damped_inverse() -> None:
    gram = Gram(12)
    for batch in batches():
        gram.update(batch)
    factor = gram.inverse_factor(0.01)
    damped = gram.value.double()
    damped += 0.01 * damped.diagonal().mean() * torch.eye(12)
    assert torch.equal(factor, factor.triu())
    torch.testing.assert_close(
        factor.double().T @ factor.double() @ damped, torch.eye(12).double(), rtol=1e-4, atol=1e-4
    )
    assert gram.inverse_factor(0.01) is factor
    gram.update(batches()[0])
    assert gram.inverse_factor(0.01) is not factor


def test_a_part_of_a_gram_matrix_is_inverted_alone() -> None:
    gram, features = Gram(12), torch.arange(12) % 3 > 0
    for batch in batches():
        gram.update(batch)
    inputs = numpy.concatenate([batch.double().numpy() for batch in batches()]).reshape(-1, 12)[:, features.numpy()]
    moment = inputs.T @ inputs / len(inputs)
    moment += 0.01 * moment.diagonal().mean() * numpy.eye(8)
    numpy.testing.assert_allclose(gram.only(features).inverse_moment(0.01), numpy.linalg.inv(moment), atol=1e-5)


def test_the_spectrum_is_that_of_the_damped_matrix_of_unit_norm_features() -> None:
    gram = Gram(12)
    for batch in batches():
        gram.update(batch * torch.arange(12))  # feature 0 is dead
    spectrum = gram.spectrum(0.01)
    correlation = numpy.corrcoef(numpy.concatenate([batch.reshape(-1, 12) for batch in batches()])[:, 1:].T)
    assert spectrum.scale[0] == 1
    assert spectrum.matrix[0].tolist() == pytest.approx([1.01] + [0] * 11, abs=1e-6)
    torch.testing.assert_close(spectrum.scale[1:], gram.value.diagonal()[1:].sqrt())
    numpy.testing.assert_allclose(spectrum.matrix[1:, 1:], correlation + 0.01 * numpy.eye(11), atol=0.02)  # its mean
    scale = spectrum.scale
    torch.testing.assert_close(
        (spectrum.matrix - 0.01 * torch.eye(12))[1:] * scale * scale[1:, None], gram.value[1:], rtol=1e-3, atol=1e-2
    )
    torch.testing.assert_close(spectrum.vectors * spectrum.values @ spectrum.vectors.T, spectrum.matrix)
    assert gram.spectrum(0.01) is spectrum
    gram.update(batches()[0])
    assert gram.spectrum(0.01) is not spectrum


def test_a_dead_feature_is_detected_and_harmless() -> None:
    gram = Gram(12)
    batch = batches()[0]
    batch[..., 5] = 0
    gram.update(batch)
    assert gram.dead.nonzero().tolist() == [[5]]
    assert gram.inverse_factor(0.01).isfinite().all()


def test_a_singular_matrix_raises_the_damping_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    gram = Gram(64)
    gram.update(torch.ones(1, 2, 64) * torch.linspace(1, 1e6, 64))
    with caplog.at_level(logging.WARNING):
        assert gram.inverse_factor(1e-9).isfinite().all()
    assert "singular with damping 1e-09; trying ten times that" in caplog.text
    caplog.clear()
    gram.layer = "model.layers.3.mlp.down_proj.weight"
    gram.only(torch.ones(64, dtype=torch.bool)).inverse_factor(1e-9)
    assert caplog.messages[0].startswith("the Gram matrix of the 64 inputs of model.layers.3.mlp.down_proj.weight is")


def test_inputs_that_are_not_finite_are_refused() -> None:
    gram = Gram(4)
    gram.update(torch.full((1, 2, 4), torch.nan))
    norm = InputNorm(4)
    norm.update(torch.full((1, 2, 4), torch.inf))
    for read in (lambda: gram.inverse_factor(0.01), lambda: gram.spectrum(0.01), lambda: norm.value):
        with pytest.raises(ModelRefused, match="not finite"):
            read()


def test_block_influence_is_one_minus_the_mean_cosine() -> None:
    before, after = torch.randn(2, 5, 8), torch.randn(2, 5, 8)
    influence = BlockInfluence()
    influence.update(before[:1], after[:1])
    influence.update(before[1:], after[1:])
    cosines = [
        float(b @ a / b.norm() / a.norm())
        for b, a in zip(before.view(-1, 8), after.view(-1, 8), strict=True)
    ]  # fmt: skip
    assert influence.value == pytest.approx(1 - sum(cosines) / len(cosines), abs=1e-6)
    same = BlockInfluence()
    same.update(before, 3 * before)
    assert same.value == pytest.approx(0, abs=1e-12)
