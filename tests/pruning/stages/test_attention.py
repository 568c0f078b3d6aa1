"""Attention of all scores at once against its formula in float64, and what is left to torch's fused kernel."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from pruning.stages import attention
from pruning.stages.attention import NAME, attend_at_once, whole_scores
from tests.pruning import tiny

MODULE: Any = SimpleNamespace(is_causal=True, num_key_value_groups=3)


def drawn(tokens: int = 20, dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of six heads, keys and values of two groups."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, heads, tokens, 8).to(dtype).requires_grad_() for heads in (6, 2, 2))
    return query, key, value


def slowly(query: Tensor, key: Tensor, value: Tensor, allowed: Tensor, scale: float) -> Tensor:
    """Attention [batch, tokens, heads, size], one head and one query at a time."""
    result = torch.zeros(2, query.shape[2], 6, 8, dtype=torch.float64)
    for batch in range(2):
        for head in range(6):
            keys, values = key[batch, head // 3], value[batch, head // 3]
            for at in range(query.shape[2]):
                seen = allowed[at].nonzero().flatten()
                scores = keys[seen] @ query[batch, head, at] * scale
                result[batch, at, head] = scores.exp() @ values[seen] / scores.exp().sum()
    return result


@pytest.mark.parametrize("window", [None, 5])
def test_outputs_and_gradients_are_those_of_the_formula(window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)
    allowed = torch.ones(20, 20, dtype=torch.bool).tril()
    mask = None
    if window:
        allowed &= torch.ones(20, 20, dtype=torch.bool).triu(1 - window)
        mask = allowed.expand(2, 1, 20, 20)
    given = drawn()
    query, key, value = exact = [tensor.detach().double().requires_grad_() for tensor in given]
    found, expected = whole_scores(MODULE, *given, mask, scaling=0.3)[0], slowly(query, key, value, allowed, 0.3)
    assert found.shape == expected.shape
    assert found.is_contiguous()
    torch.testing.assert_close(found.double(), expected, atol=0.02, rtol=0.02)
    weights = torch.randn(expected.shape).bfloat16()
    torch.autograd.backward(found, weights)
    torch.autograd.backward(expected, weights.double())
    for tensor, other in zip(given, exact, strict=True):
        assert tensor.grad is not None
        assert other.grad is not None
        assert (tensor.grad.double() - other.grad).norm() < 0.02 * other.grad.norm()


@pytest.mark.parametrize(
    ("change", "tokens", "dtype"),
    [
        ({"softcap": 5.0}, 20, torch.bfloat16),
        ({"is_causal": False}, 20, torch.bfloat16),
        ({"dropout": 0.1}, 20, torch.bfloat16),
        ({}, 20, torch.float32),
        ({}, attention.LONGEST + 1, torch.bfloat16),
    ],
)
def test_the_rest_is_left_to_the_fused_kernel(
    monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], tokens: int, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(attention, "sdpa_attention_forward", lambda *_, **options: options)
    found: Any = whole_scores(MODULE, *drawn(tokens, dtype), None, scaling=0.3, **change)
    assert found == {"scaling": 0.3, **change}


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "qwen2"])
def test_a_model_computes_the_same_by_it(kind: str) -> None:
    model = tiny.build(kind).bfloat16()
    ids = torch.arange(60).view(2, 30)
    with torch.no_grad():
        expected = model(ids).logits.float()
        attend_at_once(model)
        assert model.config._attn_implementation == NAME
        found = model(ids).logits.float()
    assert not torch.equal(found, expected)
    assert (found - expected).norm() < 0.02 * expected.norm()


def test_a_model_that_attends_otherwise_is_left_alone() -> None:
    model = tiny.build("llama")
    model.set_attn_implementation("eager")
    attend_at_once(model)
    assert model.config._attn_implementation == "eager"
