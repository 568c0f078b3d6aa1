"""Hard-concrete masks against their formulas."""

from math import exp, log

import pytest
import torch

from pruning.stages.training.shear.hard_concrete import decide, penalty, probability, sample, target_at


def sigmoid(x: float) -> float:
    return 1 / (1 + exp(-x))


def test_a_sample_is_the_stretched_and_clipped_concrete_variable() -> None:
    torch.manual_seed(0)
    log_alpha, uniform = torch.randn(50).double() * 3, torch.rand(50).double()
    expected = [
        min(max(sigmoid((log(u) - log(1 - u) + a) / (2 / 3)) * 1.2 - 0.1, 0.0), 1.0)
        for a, u in zip(log_alpha.tolist(), uniform.tolist(), strict=True)
    ]
    assert sample(log_alpha, uniform).tolist() == pytest.approx(expected)
    assert {0.0, 1.0} < set(expected), "both ends are reached, and what lies between"


@pytest.mark.parametrize("log_alpha", [-2.0, 0.0, 1.5])
def test_the_probability_is_the_frequency(log_alpha: float) -> None:
    generator = torch.Generator().manual_seed(0)
    uniform = torch.rand(200_000, generator=generator).clamp(1e-6, 1 - 1e-6)
    frequency = (sample(torch.full((200_000,), log_alpha), uniform) > 0).double().mean().item()
    assert probability(torch.tensor(log_alpha)).item() == pytest.approx(frequency, abs=0.005)  # 4 standard errors


def test_deterministic_masks_meet_the_target_exactly() -> None:
    masks = decide(torch.tensor([0.5, -1.0, 2.0, -1.0, 3.0]), 3)
    assert masks.tolist() == pytest.approx([sigmoid(0.6), 0, sigmoid(2.4), 0, sigmoid(3.6)])
    assert decide(torch.zeros(4), 1).tolist() == [0, 0, 0, 0.5]


def test_masks_and_multipliers_meet_the_constraint() -> None:
    """Gradient descent in the masks with ascent in the multipliers ends at the target, as the paper's method needs."""
    log_alpha = torch.full((10,), 2.0, requires_grad=True)
    multipliers = torch.zeros(2, requires_grad=True)
    optimiser = torch.optim.SGD([{"params": [log_alpha], "lr": 0.1}, {"params": [multipliers], "lr": -0.01}])
    for _ in range(2000):
        optimiser.zero_grad()
        torch.autograd.backward(penalty(probability(log_alpha).sum(), 6.0, multipliers[0], multipliers[1]))
        optimiser.step()
    assert probability(log_alpha).sum().item() == pytest.approx(6, abs=0.05)


def test_the_penalty_and_its_target_are_the_formulas() -> None:
    assert penalty(torch.tensor(7.0), 5.0, torch.tensor(0.5), torch.tensor(2.0)).item() == 0.5 * 2 + 2 * 4
    assert [target_at(step, 4, 10.0, 6.0) for step in range(6)] == [10, 9, 8, 7, 6, 6]
    assert target_at(0, 0, 10.0, 6.0) == 6
