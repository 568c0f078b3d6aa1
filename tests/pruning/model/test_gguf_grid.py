"""Grids of GGUF files: codes and scales against the gguf package's own dequantisation, and rows in rotary order."""

from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from torch import Tensor

from pruning.model.gguf_grid import FIELDS, OnOwnGrid, decoded, told_apart
from pruning.model.weights import InMemory
from server.artifact.checkpoint.quantised import grid_of, pack_quantised, unpack_codes

CONFIG = {"num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
UP, QUERY = "model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"


def random_blocks(kind: str, rows: int, columns: int) -> Any:
    """Random bytes of a type's blocks [rows, bytes], with scales near 0.01 and minimums below 0."""
    generator = numpy.random.default_rng(FIELDS[kind][1])
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    blocks = generator.integers(0, 256, (rows, columns // 32, size), dtype=numpy.uint8)
    for number, value in enumerate((0.01, -0.08)[: FIELDS[kind][0]]):
        heads = (value * generator.uniform(0.9, 1.1, (rows, columns // 32, 1))).astype(numpy.float16)
        blocks[..., 2 * number : 2 * number + 2] = heads.view(numpy.uint8)
    return blocks.reshape(rows, -1)


def exact(codes: Tensor, grid: Tensor) -> Tensor:
    """code * scale + minimum in float32."""
    if grid.dim() == 2:
        return codes.float() * grid.float().repeat_interleave(32, dim=1)
    scales, minimums = grid.float().repeat_interleave(32, dim=1).unbind(2)
    return codes.float() * scales + minimums


@pytest.mark.parametrize("kind", FIELDS)
def test_codes_on_their_grid_are_what_the_gguf_package_dequantises(kind: str) -> None:
    data = random_blocks(kind, 6, 96)
    codes, grid = decoded(data, kind)
    wanted = torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType[kind]))
    assert torch.equal(exact(codes, grid), wanted)


def file_of(path: Path, tensors: dict[str, tuple[str, Any]], architecture: str = "llama") -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    for name, (kind, data) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("kind", FIELDS)
def test_an_artifact_of_unchanged_weights_holds_the_numbers_of_the_file(tmp_path: Path, kind: str) -> None:
    data = random_blocks(kind, 16, 64)
    file = file_of(tmp_path / "a.gguf", {"blk.0.ffn_up.weight": (kind, data)})
    wanted = torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType[kind]))
    source = OnOwnGrid(InMemory({UP: wanted.bfloat16()}), file, CONFIG)
    assert (source.names(), source.kinds) == ([UP], {kind: 1})
    scales = source.scales(UP)
    assert scales is not None
    layout, parts = pack_quantised(source.tensor(UP), scales)
    assert (layout.bits, layout.group, layout.asymmetric) == (FIELDS[kind][1], 32, FIELDS[kind][0] == 2)
    assert torch.equal(exact(unpack_codes(parts, layout), grid_of(parts)), wanted)


def test_rows_that_the_converter_turned_for_rotary_embeddings_are_turned_back(tmp_path: Path) -> None:
    data = random_blocks("Q4_1", 32, 64)
    stored = torch.from_numpy(gguf.dequantize(data, gguf.GGMLQuantizationType.Q4_1))
    file = file_of(tmp_path / "a.gguf", {"blk.0.attn_q.weight": ("Q4_1", data)})
    heads = CONFIG["num_attention_heads"]
    turned = stored.reshape(heads, -1, 2, 64).transpose(1, 2).reshape(32, 64)  # as transformers' reader does
    for weight in (turned, stored):
        scales = OnOwnGrid(InMemory({QUERY: weight.bfloat16()}), file, CONFIG).scales(QUERY)
        assert scales is not None
        layout, parts = pack_quantised(weight.bfloat16(), scales)
        assert torch.equal(exact(unpack_codes(parts, layout), grid_of(parts)), weight)


def test_other_weights_than_the_file_s_and_other_types_have_no_grid(tmp_path: Path) -> None:
    blocks = numpy.zeros((2, 144), numpy.uint8)  # one block of Q4_K a row
    data = random_blocks("Q8_0", 16, 64)
    file = file_of(tmp_path / "a.gguf", {"blk.0.ffn_up.weight": ("Q8_0", data), "output.weight": ("Q4_K", blocks)})
    weights = {UP: torch.ones(16, 64, dtype=torch.bfloat16), "lm_head.weight": torch.zeros(2, 256).bfloat16()}
    source = OnOwnGrid(InMemory(weights), file, CONFIG)
    assert source.scales(UP) is source.scales("lm_head.weight") is None
    assert source.left == {"Q8_0": 1, "Q4_K": 1}
    other = file_of(tmp_path / "b.gguf", {"blk.0.ffn_up.weight": ("Q8_0", data)}, "unheard-of")
    assert not OnOwnGrid(InMemory(weights), other, CONFIG).kinds


def test_a_grid_far_from_zero_does_not_tell_codes_apart_in_bfloat16() -> None:
    assert told_apart(torch.tensor([[[0.01, -0.08], [0.0, 5.0]]]).half(), 16)
    assert not told_apart(torch.tensor([[[0.001, 1.0]]]).half(), 16)
