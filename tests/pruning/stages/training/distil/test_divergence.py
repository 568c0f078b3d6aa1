"""The loss against the papers' definition done slowly, and its gradient against torch's own, over several chunks."""

import pytest
import torch
from torch.nn import functional

from pruning.stages.training.distil.divergence import ROWS, divergence
from tests.reference import slow


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_the_loss_is_the_divergence_of_the_papers(temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 2, ROWS, 7).double()  # two chunks
    rows = 2 * ROWS
    expected = slow.divergence(student.view(rows, 7).numpy(), teacher.view(rows, 7).numpy(), temperature)
    assert divergence(student, teacher, temperature).item() == pytest.approx(expected, rel=1e-5)  # float32 inside
    assert divergence(teacher, teacher, temperature).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize(("tokens", "temperature"), [(4, 1.0), (ROWS + 3, 2.5)])
def test_its_gradient_agrees_with_autograd(tokens: int, temperature: float) -> None:
    torch.manual_seed(0)
    student, teacher = torch.randn(2, 1, tokens, 5)
    student.requires_grad_(True)
    (gradient,) = torch.autograd.grad(3 * divergence(student, teacher, temperature), student)
    given, expected = (functional.log_softmax(logits[0] / temperature, dim=-1) for logits in (student, teacher))
    loss = functional.kl_div(given, expected, reduction="batchmean", log_target=True) * temperature**2
    (derived,) = torch.autograd.grad(3 * loss, student)
    torch.testing.assert_close(gradient, derived)
    if temperature == 1:
        torch.testing.assert_close(gradient, 3 * (student.softmax(-1) - teacher.softmax(-1)) / tokens)
