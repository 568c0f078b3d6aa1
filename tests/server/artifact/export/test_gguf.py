"""GGUF as llama.cpp reads it: the probabilities, the greedy replies and the token ids are those of the artifact."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from tokenizers import Tokenizer

from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.quantised import dequantise
from server.artifact.export.gguf_file import blocks, type_of
from server.artifact.export.gguf_model import frequencies, shape_of
from server.commands.__main__ import main
from server.errors import ExportError
from tests.server.artifact.export import made
from tests.server.artifact.export.llama_cpp import loaded

PROMPT = [3, 7, 100, 256, 5, 77, 12, 300]
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
GEMMA: dict[str, Any] = {
    "kind": "gemma3_text", "cut": "sentencepiece", "query_pre_attn_scalar": 16, "sliding_window": 4,
    "num_hidden_layers": 6, "pad_token_id": 0,
}  # fmt: skip
CASES: dict[str, tuple[Any, dict[str, Any], float]] = {
    "llama": (made.dense, {}, 0.15),
    "half of the weights": (made.half, {}, 0.15),
    "biases": (made.dense, {"attention_bias": True, "mlp_bias": True}, 0.15),
    "heads wider than the model": (made.dense, {"head_dim": 32}, 0.15),
    "llama 3": (made.dense, {"cut": "llama3", "rope_parameters": LLAMA3}, 0.15),
    "linear": (made.dense, {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}, 0.15),
    "tied": (made.dense, {"tie_word_embeddings": True}, 0.15),
    "mistral": (made.dense, {"kind": "mistral", "sliding_window": None}, 0.15),
    "qwen2": (made.dense, {"kind": "qwen2", "cut": "qwen2"}, 0.15),
    "qwen3": (made.dense, {"kind": "qwen3", "cut": "qwen2"}, 0.15),
    "gemma 3": (made.dense, GEMMA, 0.15),
    "gemma 3 in 4 bits": (made.codes(4, 32), GEMMA, 0.4),
    "4 bits": (made.codes(4, 32), {}, 0.4),
    "4 bits, wide groups": (made.codes(4, 128), {}, 0.4),
    "8 bits, embeddings too": (made.codes(8, 64, embeddings=True), {}, 0.4),
}


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_llama_cpp_gives_every_token_the_probability_that_the_artifact_gives_it(tmp_path: Path, case: str) -> None:
    change, sizes, tolerance = CASES[case]
    artifact = made.artifact(tmp_path, change, initializer_range=0.2, **sizes)
    model = made.exact(artifact)
    with loaded(made.export(artifact, "gguf"), made.VOCABULARY) as llama:
        for length in (1, 4, len(PROMPT)):
            expected = model(torch.tensor([PROMPT[:length]])).logits[0, -1].log_softmax(dim=-1)
            found = llama.log_probabilities(PROMPT[:length])
            assert expected.max() - expected.min() > 5  # so far apart that an exchanged row shows: by 0.9 and more
            assert (found - expected).abs().max() < tolerance


def test_the_file_names_its_record_and_holds_every_code(tmp_path: Path) -> None:
    artifact = made.artifact(tmp_path, made.codes(4, 64))
    reader = gguf.GGUFReader(next(made.export(artifact, "gguf").glob("*.gguf")))
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    name = "model.layers.1.mlp.down_proj.weight"
    tensor = tensors["blk.1.ffn_down.weight"]
    scales = artifact.scales(name)
    assert scales is not None
    assert tensor.tensor_type == gguf.GGMLQuantizationType.Q4_0
    found = gguf.dequantize(tensor.data, tensor.tensor_type)
    assert numpy.array_equal(found, (artifact.codes(name).float() * scales.float().repeat_interleave(64, 1)).numpy())
    norm = tensors["output_norm.weight"]
    assert norm.tensor_type == gguf.GGMLQuantizationType.F32
    assert numpy.array_equal(norm.data, artifact.tensor("model.norm.weight").float().numpy())
    assert reader.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_0
    assert len(reader.fields["secateur.record"].contents()) == 64


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group", [32, 64, 128])
def test_blocks_are_those_of_the_library(bits: int, group: int) -> None:
    weight, scales = made.codes(bits, group)(".layers.", torch.zeros(6, 160))
    assert scales is not None
    codes = (weight.float() / scales.float().repeat_interleave(group, 1)[:, :160]).round().to(torch.int8)
    layout = Quantised(bits=bits, group=group, columns=160)  # type: ignore[arg-type]
    kind = {4: gguf.GGMLQuantizationType.Q4_0, 8: gguf.GGMLQuantizationType.Q8_0}[bits]
    found = torch.from_numpy(gguf.dequantize(blocks(codes, scales, layout).numpy(), kind))
    assert torch.equal(found.bfloat16(), dequantise(codes, scales))


@pytest.mark.parametrize(
    ("kind", "bits", "asymmetric"),
    [("Q4_0", 3, False), ("Q4_1", 3, True), ("Q4_1", 4, True), ("Q5_0", 5, False), ("Q5_1", 5, True),
     ("Q8_0", 6, False)],
)  # fmt: skip
@pytest.mark.parametrize("group", [32, 64])
def test_other_codes_are_blocks_of_the_smallest_type_that_holds_them(
    kind: str, bits: int, asymmetric: bool, group: int
) -> None:
    generator = torch.Generator().manual_seed(bits)
    least = 0 if asymmetric else -(1 << (bits - 1))
    codes = torch.randint(least, least + (1 << bits), (6, 160), generator=generator).to(torch.int8)
    grid = (torch.rand(6, -(-160 // group), 2, generator=generator) * 0.01 + 0.01).half() * torch.tensor([1, -4]).half()
    grid = grid if asymmetric else grid[..., 0]
    layout = Quantised(bits=bits, group=group, columns=160, asymmetric=asymmetric)  # type: ignore[arg-type]
    assert type_of(layout) == kind
    found = gguf.dequantize(blocks(codes, grid, layout).numpy(), gguf.GGMLQuantizationType[kind])
    spread = grid.float().repeat_interleave(group, dim=1)[:, :160]
    expected = codes.float() * spread[..., 0] + spread[..., 1] if asymmetric else codes.float() * spread
    assert torch.equal(torch.from_numpy(found), expected)


@pytest.mark.parametrize("cut", [*made.CUTS, "sentencepiece"])
def test_llama_cpp_encodes_as_the_tokenizer_does(tmp_path: Path, cut: str) -> None:
    artifact = made.artifact(tmp_path, made.dense, cut=cut)
    tokenizer = Tokenizer.from_file(str(artifact.path / "tokenizer.json"))
    tokenizer.encode_special_tokens = True
    chat = [{"role": "user", "content": "What is pruned?"}]
    with loaded(made.export(artifact, "gguf"), made.VOCABULARY) as llama:
        for text in _texts():
            assert llama.encode(text) == tokenizer.encode(text, add_special_tokens=False).ids, text
        assert llama.chat(chat).startswith("<|im_start|>user\nWhat is pruned?<|im_end|>\n")


@torch.no_grad()
def test_a_greedy_reply_of_llama_cpp_is_the_artifact_s(tmp_path: Path) -> None:
    artifact = made.artifact(tmp_path, made.half, initializer_range=0.5)  # far apart, so that rounding decides nothing
    model = made.exact(artifact)
    with loaded(made.export(artifact, "gguf"), made.VOCABULARY) as llama:
        found = llama.greedy(PROMPT, 24)
    ids = list(PROMPT)
    for _ in found:
        logits = model(torch.tensor([ids])).logits[0, -1]
        logits[made.END] = -torch.inf  # which the reply was told to leave out
        ids.append(int(logits.argmax()))
    assert found == ids[len(PROMPT) :]
    assert len(found) == 24
    assert len(set(found)) > 3


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"kind": "gemma"}, "is a gemma model, and only llama, mistral, qwen2, qwen3, gemma3_text are written as GGUF"),
        (GEMMA | {"num_hidden_layers": 7, "layer_types": ["full_attention"] * 7}, "with a whole view are not each 6th"),
        (GEMMA | {"query_pre_attn_scalar": 24}, "its attention is not scaled by the size of a head"),
        (GEMMA | {"final_logit_softcapping": 30.0}, "it caps logits"),
        ({"hidden_act": "gelu"}, "its activation is gelu, not silu"),
        ({"kind": "mistral", "sliding_window": 16}, "its attention looks back over a window"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}, "its rope_type is dynamic"),
    ],
)
def test_models_that_llama_cpp_computes_differently_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], sizes: dict[str, Any], sentence: str
) -> None:
    artifact = made.artifact(tmp_path, made.dense, **sizes)
    assert main(["export", str(artifact.path), "--to", "gguf", "--output", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


SIZES = {
    "model_type": "llama", "num_hidden_layers": 2, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
}  # fmt: skip


@pytest.mark.parametrize("rope", [LLAMA3, {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5}])
def test_a_config_of_older_transformers_gives_the_same_rotations(tmp_path: Path, rope: dict[str, Any]) -> None:
    new = shape_of(tmp_path, {**SIZES, "rope_parameters": rope})
    scaling = {name: value for name, value in rope.items() if name != "rope_theta"}
    for kind in ("rope_type", "type"):
        named = {kind if name == "rope_type" else name: value for name, value in scaling.items()}
        old = shape_of(tmp_path, {**SIZES, "rope_theta": rope["rope_theta"], "rope_scaling": named})
        assert old.theta == new.theta
        assert [tensor.tolist() for _, tensor in frequencies(old)] == [
            tensor.tolist() for _, tensor in frequencies(new)
        ]
        assert old.rope["rope_type"] == new.rope["rope_type"]
        assert old.rope["factor"] == new.rope["factor"]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "its rope_type is yarn"),
        ({"rope_scaling": {"rope_type": "longrope"}}, "its rope_type is longrope"),
        ({"partial_rotary_factor": 0.5}, "it rotates only a part of each head"),
    ],
)
def test_an_older_config_is_refused_as_a_newer_one(tmp_path: Path, config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ExportError, match=sentence):
        shape_of(tmp_path, {**SIZES, **config})


def test_ids_beyond_the_embeddings_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = made.artifact(tmp_path, made.dense)
    added = json.loads((artifact.path / "tokenizer.json").read_text())["added_tokens"]
    beyond = {**added[-1], "id": 384, "content": "<new>"}
    grown = made.retokenised(artifact, {"added_tokens": [*added, beyond]})
    assert main(["export", str(grown.path), "--to", "gguf", "--output", str(tmp_path / "out")]) == 2
    assert "the token '<new>' has an id beyond the 384 rows" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}}, "it has no merges, which llama.cpp requires"),
        ({"normalizer": {"type": "Lowercase"}}, "it is not a byte-level BPE"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "the pre-tokenizer is not recognised"),
    ],
)
def test_a_tokenizer_that_llama_cpp_would_not_reproduce_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], sentence: str
) -> None:
    artifact = made.retokenised(made.artifact(tmp_path, made.dense), change)
    assert main(["export", str(artifact.path), "--to", "gguf", "--output", str(tmp_path / "out")]) == 2
    assert f"tokenizer.json cannot be written as GGUF: {sentence}" in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def _texts() -> Iterator[str]:
    """Text with everything that cutting into words looks at, and random characters."""
    yield from (
        "It's 1234567 o'clock,  WE'LL   see\n\n  x = 3.14;\ttabs",
        "  ",
        "<|im_end|>",
        "ÄÖ naïve 中文 🙂 ٣٤",
        "a\r\n\r\nb",
    )
    draw = random.Random(0)
    for _ in range(60):
        yield "".join(chr(draw.choice([*range(32, 127), 10, 13, 9, 0xE9, 0x3B1, 0x4E2D, 0x663])) for _ in range(30))
