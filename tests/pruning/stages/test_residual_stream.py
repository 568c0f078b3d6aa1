"""Which layers write to the residual stream, on a dozen and more architectures."""

import pytest
import torch

from pruning.model.blocks import Blocks
from pruning.model.weights import InMemory
from pruning.stages.residual_stream import stream_writers
from tests.pruning import tiny

NAMES = {
    "gpt2": ("attn.c_proj", "mlp.c_proj"),
    "gpt_neox": ("attention.dense", "mlp.dense_4h_to_h"),
    "opt": ("self_attn.out_proj", "fc2"),
    "starcoder2": ("self_attn.o_proj", "mlp.c_proj"),
    "bloom": ("self_attention.dense", "mlp.dense_4h_to_h"),
    "gemma2": (),  # a norm lies between its layers and the stream
}
IDS = torch.randint(0, 256, (2, 24), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", tiny.ARCHITECTURES)
def test_the_last_layers_of_attention_and_mlp_write_to_the_stream(kind: str) -> None:
    model = tiny.build(kind)
    blocks = Blocks(model, InMemory(dict(model.state_dict())))
    states, calls = blocks.capture(IDS)
    found = stream_writers(blocks.linears(0), states, lambda: blocks.run(0, states.clone(), calls[0]))
    expected = NAMES.get(kind, ("self_attn.o_proj", "mlp.down_proj"))
    assert found == tuple(f"{blocks.path}.0.{name}.weight" for name in expected)
