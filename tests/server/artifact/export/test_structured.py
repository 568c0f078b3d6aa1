"""Models that lost blocks, units, heads or tokens are ordinary checkpoints in every format."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pruning.commands.__main__ import main as prune
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny
from tests.pruning.conftest import RECIPE
from tests.server.artifact.export import made
from tests.server.artifact.export.llama_cpp import loaded

pytestmark = pytest.mark.slow

STAGES = {
    "depth": '[[stages]]\nkind = "depth"\nremove = 2',
    "width": '[[stages]]\nkind = "width"\nimportance = { name = "taylor" }\nffn = 0.25\nkv_groups = 1',
    "vocabulary": '[[stages]]\nkind = "vocabulary"\nkeep = 320',
    "sparse and quantised": """
[[stages]]
kind = "layerwise"
technique = { name = "sparsegpt", sparsity = "32:64" }
[[stages]]
kind = "layerwise"
technique = { name = "gptq", group = 32 }
""",
}
PROMPT = [40, 7, 100, 256, 5, 77]


def pruned(folder: Path, stages: str) -> Artifact:
    """What `secateur prune` makes of a tiny Llama."""
    sizes: dict[str, Any] = {
        "num_hidden_layers": 4,
        "vocab_size": made.VOCABULARY,
        "eos_token_id": made.VOCABULARY - 1,
        "bos_token_id": None,
    }
    model = tiny.save(folder / "model", **sizes)
    made.write_tokenizer(model, "digits", spare=0)
    text, recipe = folder / "text.txt", folder / "recipe.toml"
    text.write_text("\n\n".join(f"Paragraph {n} says that {n} times {n} is {n * n}." for n in range(100)))
    recipe.write_text(RECIPE.format(model=model, text=text, stages=stages))
    words = [str(recipe), "--output", str(folder / "artifact"), "--base-cache", str(folder / "cache")]
    assert prune(["prune", *words]) == 0
    return Artifact.open(folder / "artifact")


@pytest.mark.parametrize("stage", STAGES)
def test_each_loads_in_transformers_and_in_llama_cpp(tmp_path: Path, stage: str) -> None:
    artifact = pruned(tmp_path, STAGES[stage])
    model: Any = AutoModelForCausalLM.from_pretrained(made.export(artifact, "hf"), dtype=torch.float32)
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == {
        name: artifact.shape(name) for name in artifact.names()
    }
    expected = model(torch.tensor([PROMPT])).logits[0, -1].detach().log_softmax(dim=-1)
    with loaded(made.export(artifact, "gguf"), len(expected)) as llama:
        assert (llama.log_probabilities(PROMPT) - expected).abs().max() < 0.05
    if stage == "sparse and quantised":
        packed = AutoModelForCausalLM.from_pretrained(made.export(artifact, "compressed-tensors"), dtype=torch.float32)
        found = packed(torch.tensor([PROMPT])).logits[0, -1].detach().log_softmax(dim=-1)
        assert (found - expected).abs().max() < 0.02
