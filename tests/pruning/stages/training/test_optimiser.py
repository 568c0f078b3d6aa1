"""The schedule against its definition, a step against Adam's, and exact zeros."""

from math import cos, pi, sqrt

import pytest
import torch
from torch import nn

from pruning.stages.training.optimiser import BETAS, Optimiser, rate
from pruning.stages.training.student import Student, TrainedParameters


def test_the_learning_rate_rises_along_a_line_and_falls_along_a_cosine() -> None:
    rates = [rate(step, 20, 0.2) for step in range(1, 21)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:] == pytest.approx([0.1 + 0.9 * (1 + cos(pi * k / 16)) / 2 for k in range(1, 17)])
    assert rates[-1] == pytest.approx(0.1)
    assert rate(1, 1, 0.0) == pytest.approx(0.1)
    assert rate(1, 1, 1.0) == 1.0


def test_a_step_leaves_pruned_weights_and_their_moments_at_exactly_zero() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    pruned = torch.rand(16, 16) < 0.5
    layer.weight.data.masked_fill_(pruned, 0)
    before = layer.weight.data.clone()
    student = Student(layer, TrainedParameters(dict(layer.named_parameters()), {"weight": pruned}))
    optimiser = Optimiser(student, learning_rate=0.1, steps=3, warmup=0)
    for step in (1, 2, 3):
        optimiser.step(layer(torch.randn(8, 16)).square().mean(), step)
    assert layer.weight[pruned].eq(0).all()
    assert layer.weight[~pruned].ne(before[~pruned]).all()
    moments = optimiser.adam.state[student.parameters["weight"]]
    assert moments["exp_avg"][pruned].eq(0).all()
    assert moments["exp_avg"][~pruned].ne(0).all()


def test_weights_pruned_after_training_stay_zero() -> None:
    torch.manual_seed(0)
    layer, pruned = nn.Linear(16, 16), torch.rand(16, 16) < 0.5
    masks: dict[str, torch.Tensor] = {}
    student = Student(layer, TrainedParameters(dict(layer.named_parameters()), masks))
    optimiser = Optimiser(student, learning_rate=0.1, steps=2, warmup=0)
    optimiser.step(layer(torch.randn(8, 16)).square().mean(), 1)  # leaves moments, which move without a gradient
    student.parameters["weight"].data.masked_fill_(pruned, 0)
    masks["weight"] = pruned
    optimiser.step(layer(torch.randn(8, 16)).square().mean(), 2)
    assert layer.weight[pruned].eq(0).all()


def test_a_step_is_adam_s_with_the_gradient_clipped() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 1, bias=False)
    weights = [layer.weight[0, i].item() for i in range(3)]
    student = Student(layer, TrainedParameters(dict(layer.named_parameters()), {}))
    optimiser = Optimiser(student, learning_rate=0.01, steps=2, warmup=1)
    first, second = [0.0] * 3, [0.0] * 3
    for step, inputs in ((1, [3.0, -4.0, 12.0]), (2, [0.1, 0.2, 0.2])):
        optimiser.step(layer(torch.tensor([inputs])).sum(), step)  # its gradient is `inputs`, of norm 13 and 0.3
        norm = max(sqrt(sum(g * g for g in inputs)), 1.0)
        for i, g in enumerate(x / norm for x in inputs):
            first[i] = BETAS[0] * first[i] + (1 - BETAS[0]) * g
            second[i] = BETAS[1] * second[i] + (1 - BETAS[1]) * g * g
            mean, square = first[i] / (1 - BETAS[0] ** step), second[i] / (1 - BETAS[1] ** step)
            weights[i] -= 0.01 * step / 2 * mean / (sqrt(square) + 1e-8)
    assert student.parameters["weight"][0].tolist() == pytest.approx(weights, rel=1e-5)
    assert torch.equal(layer.weight, student.parameters["weight"].bfloat16().float()), "the layer has what is stored"
