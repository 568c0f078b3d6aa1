import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.evaluation.perplexity import dense, perplexity, quantise, rounded
from pruning.inputs import base_artifact
from pruning.model import find_blocks, is_linear

WINDOWS = torch.randint(0, 256, (3, 20), generator=torch.Generator().manual_seed(0))


def test_perplexity_is_what_transformers_own_loss_says(model: Path, tmp_path: Path) -> None:
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        losses = [stock(input_ids=window[None], labels=window[None]).loss.item() for window in WINDOWS]
    ours = perplexity(dense(base_artifact(str(model), tmp_path)), WINDOWS, "evaluating")
    assert ours == pytest.approx(math.exp(sum(losses) / 3), rel=1e-5)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    class Nothing(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, use_cache: bool) -> "Nothing":
            self.logits = torch.zeros(1, input_ids.shape[1], 257)
            return self

    assert perplexity(Nothing(), WINDOWS, "evaluating") == pytest.approx(257)


@pytest.mark.parametrize("columns", [32, 96, 50])
def test_rounding_is_to_the_nearest_of_255_steps_in_each_group(columns: int) -> None:
    weight = torch.randn(4, columns)
    result = rounded(weight)
    for row, given in zip(result, weight, strict=True):
        for start in range(0, columns, 32):
            scale = float((given[start : start + 32].abs().max() / 127).half())
            for value, original in zip(row[start : start + 32], given[start : start + 32], strict=True):
                steps = max(-127, min(127, round(float(original) / scale)))
                assert float(value) == pytest.approx(steps * scale, abs=1e-6)
    assert torch.equal(rounded(torch.zeros(2, columns)), torch.zeros(2, columns))


def test_quantising_counts_eight_and_a_half_bits(model: Path, tmp_path: Path) -> None:
    loaded = dense(base_artifact(str(model), tmp_path))
    stack = find_blocks(loaded)[1]
    before = [module.get_parameter("weight").detach().clone() for module in stack.modules() if is_linear(module)]
    embedding = loaded.get_parameter("model.embed_tokens.weight").clone()
    numbers = sum(weight.numel() for weight in before)
    assert quantise(loaded) == numbers * (16 - 8.5) / 8
    after = [module.get_parameter("weight").detach() for module in stack.modules() if is_linear(module)]
    for old, new in zip(before, after, strict=True):
        assert not torch.equal(old, new)
        torch.testing.assert_close(old, new, rtol=0, atol=float(old.abs().max()) / 200)
    assert torch.equal(loaded.get_parameter("model.embed_tokens.weight"), embedding)
