import io
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gguf
import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForCausalLM

from pruning.errors import ModelRefused
from pruning.model import base
from pruning.stages import inputs
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import Artifact
from server.storage.lock import locked
from tests.pruning import tiny


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "bloom"])
def test_a_directory_becomes_a_base_artifact_with_the_same_weights(kind: str, tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", kind)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n")
    artifact = base_artifact(str(folder), tmp_path / "cache")
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    assert artifact.names() == sorted(name for name, _ in stock.named_parameters())
    for name, parameter in stock.named_parameters():
        assert torch.equal(artifact.tensor(name), parameter)
    assert artifact.lineage.steps == ()
    assert (artifact.lineage.base.name, artifact.lineage.base.license) == ("model", "mit")
    assert artifact.path.name == f"model-{artifact.lineage.base.digest[:12]}"


def test_a_directory_of_several_files_is_read_as_one_and_refused_without_one_of_them(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "whole")
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    (folder / "model.safetensors").unlink()
    stock.save_pretrained(folder, max_shard_size="100KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    artifact = base_artifact(str(folder), tmp_path / "cache")
    assert all(torch.equal(artifact.tensor(name), parameter) for name, parameter in stock.named_parameters())
    shards[1].unlink()
    with pytest.raises(
        ModelRefused, match=rf"{shards[1].name}, which model.safetensors.index.json names, does not exist"
    ):
        base_artifact(str(folder), tmp_path / "cache")
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelRefused, match=r"has no tensor .*, which a llama model needs"):
        base_artifact(str(folder), tmp_path / "cache")


def test_a_changed_model_is_another_base_and_a_damaged_import_is_made_anew(
    model: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    first = base_artifact(str(model), tmp_path)
    (first.path / "config.json").write_text("{}")
    assert base_artifact(str(model), tmp_path).config["model_type"] == "llama"
    assert "importing it again" in caplog.text
    other = tiny.save(tmp_path / "other" / "tiny", num_hidden_layers=6, rms_norm_eps=1e-3)
    assert base_artifact(str(other), tmp_path).path != first.path


def test_an_artifact_can_be_pruned_again(model: Path, tmp_path: Path) -> None:
    first = base_artifact(str(model), tmp_path / "cache")
    second = base_artifact(str(first.path), tmp_path / "again")
    for name, tensor in first.tensors():
        assert torch.equal(second.tensor(name), tensor)


def edit(**changes: Any) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return apply


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def damaged(name: str, content: bytes = b"{" * 100) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def without_a_weight(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def with_tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = change(tensors[name]).contiguous()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    return apply


DOWN, HEAD = "model.layers.1.mlp.down_proj.weight", "lm_head.weight"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (edit(architectures=["LlamaForSequenceClassification"]), "LlamaForSequenceClassification is not a causal"),
        (edit(model_type="t5", architectures=["T5ForConditionalGeneration"]), "T5For.* is not a causal language model"),
        (edit(model_type="nonesuch", architectures=None), "nonesuch is not a causal language model"),
        (edit(auto_map={"AutoModel": "code.py"}), "brings its own code"),
        (edit(quantization_config={"bits": 4}), "is quantised already: start from its 16-bit weights"),
        (pickled, r"holds pickled weights \(\*\.bin\), which can run code"),
        (without_a_weight, "has no tensor model.norm.weight, which a llama model needs"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "has no tokenizer.json"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (damaged("config.json"), r"model/config\.json cannot be read as JSON: "),
        (damaged("config.json", b"[" * 100_000), r"model/config\.json cannot be read as JSON: maximum recursion"),
        (damaged("tokenizer.json"), r"model/tokenizer\.json cannot be read as JSON: "),
        (damaged("tokenizer_config.json", b"\xff"), r"model/tokenizer_config\.json cannot be read as JSON: "),
        (damaged("generation_config.json", b"null"), r"model/generation_config\.json does not hold a JSON object"),
        (damaged("model.safetensors"), r"model cannot be read as a model: SafetensorError: "),
        (edit(num_hidden_layers=0), "holds no list of blocks"),
        (edit(num_hidden_layers=10**6), r"says num_hidden_layers = 1000000, but the files hold 21 tensors in all"),
        (
            edit(tie_word_embeddings=True),
            r"ties lm_head\.weight to model\.embed_tokens\.weight, but the files hold two",
        ),
        (damaged("model.safetensors"), r"SafetensorError: model\.safetensors: "),
        (
            with_tensor(DOWN, lambda w: w[:, :100]),
            r"down_proj\.weight is \[64, 100\], but config.json asks for \[64, 128\]",
        ),
        (with_tensor("model.norm.weight", lambda w: w[:1]), r"norm\.weight is \[1\], but config.json asks for \[64\]"),
        (with_tensor(HEAD, lambda w: torch.cat([w, w])), r"lm_head\.weight is \[514, 64\], but config.json asks for"),
        (with_tensor(DOWN, lambda w: w * torch.nan), r"down_proj\.weight holds values that are not finite"),
        (
            with_tensor(DOWN, lambda w: w.to(torch.int8)),
            r"down_proj\.weight is stored as int8: start from weights of 16",
        ),
        (with_tensor(DOWN, lambda w: w.to(torch.float8_e4m3fn)), r"down_proj\.weight is stored as float8_e4m3fn: "),
        (edit(num_attention_heads="four"), r"transformers refuses config.json: .*expected int, got str"),
    ],
)
def test_what_cannot_be_pruned_is_refused(tmp_path: Path, change: Callable[[Path], None], sentence: str) -> None:
    folder = tiny.save(tmp_path / "model")
    change(folder)
    with pytest.raises(ModelRefused, match=sentence):
        base_artifact(str(folder), tmp_path / "cache")
    assert [path.name for path in (tmp_path / "cache").glob("*")] in ([], [".lock"])


def test_left_out_tensors_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny.save(tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors | {"mtp.0.weight": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"})
    base_artifact(str(folder), tmp_path / "cache")
    assert caplog.messages == ["tensors without a place in the model are left out: 1, mtp.0.weight for instance"]


def test_only_a_changed_constant_is_refused(tmp_path: Path) -> None:
    folder = tiny.save(
        tmp_path / "model", "gemma4_text", hidden_size_per_layer_input=0, num_kv_shared_layers=0, global_head_dim=16
    )
    assert base_artifact(str(folder), tmp_path / "cache").config["model_type"] == "gemma4_text"
    with_tensor("model.layers.1.layer_scalar", lambda scalar: scalar * 0.5)(folder)
    with pytest.raises(
        ModelRefused, match=r"the files hold a changed constant, model\.layers\.1\.layer_scalar, which an art"
    ):
        base_artifact(str(folder), tmp_path / "cache")


def test_harmless_differences_are_accepted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tiny.save(tmp_path / "model", tie_word_embeddings=True)
    tensors = load_file(folder / "model.safetensors")
    tied = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"].clone()}
    save_file(tied, folder / "model.safetensors", {"format": "pt"})
    edit(quantization_config=None)(folder)
    (folder / "README.md").write_bytes(b"---\nlicense: mit\n---\nna\xefve")
    assert base_artifact(str(folder), tmp_path / "cache").lineage.base.license == "mit"
    assert not caplog.messages


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_kernel_from_a_hub_is_never_fetched(tmp_path: Path, key: str) -> None:
    folder = tiny.save(tmp_path / "model")
    expected: Any = base.skeleton(json.loads((folder / "config.json").read_text())).config
    edit(**{key: "somebody/kernels"})(folder)
    artifact = base_artifact(str(folder), tmp_path / "cache")
    found: Any = base.skeleton(artifact.config).config
    assert found._attn_implementation == expected._attn_implementation == "sdpa"
    inner = {"text_config": {key: "somebody/kernels"}}
    assert base._without_choices(inner) == {"text_config": {}}


def test_a_damaged_gguf_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ModelRefused, match=r"model\.gguf cannot be read as a model: "):
        base_artifact(str(tmp_path / "model.gguf"), tmp_path / "cache")


def test_fused_experts_are_refused(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path / "model", "mixtral")
    with pytest.raises(ModelRefused, match=r"weights of model\.layers\.0 are in linear layers .* with fused experts"):
        base_artifact(str(folder), tmp_path / "cache")


def test_a_file_that_is_not_a_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"x")
    with pytest.raises(ModelRefused, match="is neither a GGUF file nor a directory"):
        base_artifact(str(tmp_path / "model.bin"), tmp_path / "cache")


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
def test_a_skeleton_has_no_weights_and_a_stock_models_buffers(kind: str) -> None:
    config = tiny.config(kind).to_dict()
    skeleton = base.skeleton(config)
    stock = tiny.build(kind)
    assert not skeleton.training
    assert all(parameter.is_meta for parameter in skeleton.parameters())
    assert {n: p.shape for n, p in skeleton.named_parameters()} == {n: p.shape for n, p in stock.named_parameters()}
    buffers = dict(stock.named_buffers())
    assert {name for name, _ in skeleton.named_buffers()} == buffers.keys()
    for name, buffer in skeleton.named_buffers():
        assert torch.equal(buffer, buffers[name])


def gguf_file(path: Path, pre: str = "smollm", change: Callable[[gguf.GGUFWriter], object] = lambda _: None) -> Path:
    """A Q8_0 Llama of one block, written with gguf's own writer, and what `change` adds."""
    generator = numpy.random.default_rng(0)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_license("apache-2.0")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(128)
    writer.add_embedding_length(64)
    writer.add_block_count(1)
    writer.add_feed_forward_length(128)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(259)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list([*alphabet, "12", "ab", "<end>"])
    writer.add_token_types([1] * 258 + [3])
    writer.add_token_merges(["1 2", "a b"])
    writer.add_eos_token_id(258)
    writer.add_bos_token_id(258)
    writer.add_chat_template("{{ messages[0].content }}")
    shapes = {"attn_q": (64, 64), "attn_k": (32, 64), "attn_v": (32, 64), "attn_output": (64, 64)}
    shapes |= {"ffn_gate": (128, 64), "ffn_up": (128, 64), "ffn_down": (64, 128)}
    for name, shape in {"token_embd": (259, 64), **{f"blk.0.{n}": s for n, s in shapes.items()}}.items():
        data = gguf.quantize(generator.normal(size=shape).astype("f4"), gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", numpy.ones(64, dtype="f4"))
    change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(("pre", "pieces"), [("smollm", 4), ("gpt-2", 3)])
def test_a_gguf_file_is_dequantised_and_its_digits_are_split(tmp_path: Path, pre: str, pieces: int) -> None:
    artifact = base_artifact(str(gguf_file(tmp_path / "tiny.gguf", pre)), tmp_path / "cache")
    assert artifact.lineage.base.note == "Q8_0, dequantised"
    assert artifact.lineage.base.license == "apache-2.0"
    reader = gguf.GGUFReader(tmp_path / "tiny.gguf")
    tensors = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    for ours, theirs in (("embed_tokens", "token_embd"), ("layers.0.mlp.down_proj", "blk.0.ffn_down")):
        expected = torch.from_numpy(tensors[f"{theirs}.weight"].copy()).bfloat16()
        assert torch.equal(artifact.tensor(f"model.{ours}.weight"), expected)
    assert artifact.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in artifact.names()
    assert "quantization_config" not in artifact.config
    tokenizer = Tokenizer.from_file(str(artifact.path / "tokenizer.json"))
    assert len(tokenizer.encode("ab12<end>", add_special_tokens=False).ids) == pieces
    settings = json.loads((artifact.path / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == "{{ messages[0].content }}"
    assert settings["eos_token"] == "<end>"
    Artifact.open(artifact.path)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_import_of_a_gguf_file_shows_progress_and_leaves_nothing_when_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = gguf_file(tmp_path / "tiny.gguf", "smollm"), tmp_path / "cache"
    monkeypatch.setattr("sys.stderr", Terminal())

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(base, "_stored", interrupted)
        with pytest.raises(KeyboardInterrupt):
            base_artifact(str(path), cache)
    assert {file.name for file in cache.iterdir()} == {".lock"}
    base_artifact(str(path), cache)
    shown = sys.stderr
    assert isinstance(shown, Terminal)
    assert "reading the weights 100%" in shown.getvalue()
    assert "writing the weights 100%" in shown.getvalue()


def test_a_gguf_file_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    content = gguf_file(tmp_path / "whole.gguf", "smollm").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(content.replace(b"blk.0.ffn_up", b"blk.0.ffn_xx"))
    with pytest.raises(ModelRefused, match=r"lacks 1 of the model's tensors, model\.layers\.0\.mlp\.up_proj\.weight"):
        base_artifact(str(tmp_path / "tiny.gguf"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.YARN), r"its rotations \(llama.rope.scaling.type\)"),
        (lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR), r"its rotations \(llama.rope.scaling.type\)"),
        (lambda w: w.add_tensor("rope_freqs.weight", numpy.ones(8, "f4")), r"its rotations \(by rope_freqs.weight\)"),
        (
            lambda w: [w.add_tensor(f"blk.0.attn_{n}.bias", numpy.ones(32, "f4")) for n in ("k", "v")],
            r"holds 13 tensors, but the model that transformers converts it to has 12: tensors without",
        ),
    ],
)
def test_what_transformers_would_leave_out_of_a_gguf_file_is_refused(
    tmp_path: Path, change: Callable[[gguf.GGUFWriter], object], sentence: str
) -> None:
    path = gguf_file(tmp_path / "tiny.gguf", change=change)
    with pytest.raises(ModelRefused, match=sentence):
        base_artifact(str(path), tmp_path / "cache")
    unscaled = gguf_file(tmp_path / "plain.gguf", change=lambda w: w.add_rope_scaling_type(gguf.RopeScalingType.NONE))
    assert base_artifact(str(unscaled), tmp_path / "cache").config["num_hidden_layers"] == 1


def test_a_base_in_more_bits_says_that_it_was_rounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = tiny.save(tmp_path / "half", "llama")
    weights = load_file(path / "model.safetensors")
    save_file({name: tensor.half() for name, tensor in weights.items()}, path / "model.safetensors")
    assert base_artifact(str(path), tmp_path / "cache").lineage.base.note == "rounded to bfloat16 from float16"
    assert "the base is rounded to bfloat16 from float16" in caplog.text
    save_file({name: tensor.bfloat16() for name, tensor in weights.items()}, path / "model.safetensors")
    assert base_artifact(str(path), tmp_path / "cache").lineage.base.note == ""


def test_the_index_decides_which_files_are_read_else_the_usual_name(tmp_path: Path) -> None:
    path = tiny.save(tmp_path / "model", "llama")
    weights = load_file(path / "model.safetensors")
    other = {name: tensor * 2 for name, tensor in weights.items()}
    name = "model.norm.weight"
    save_file(other, path / "pytorch_model.safetensors")  # sorts last, and would win
    found = base_artifact(str(path), tmp_path / "cache")
    assert torch.equal(found.tensor(name).float(), weights[name].float())
    (path / "model.safetensors").rename(path / "a.safetensors")
    with pytest.raises(
        ModelRefused, match=r"is in a.safetensors and in pytorch_model.safetensors: keep the files of one model"
    ):
        base_artifact(str(path), tmp_path / "cache")
    index = {"weight_map": dict.fromkeys(weights, "pytorch_model.safetensors")}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))
    found = base_artifact(str(path), tmp_path / "cache")
    assert torch.equal(found.tensor(name).float(), other[name].bfloat16().float())
    for content, sentence in (
        (json.dumps({"weight_map": {name: "gone.safetensors"}}), r"gone.safetensors, which .* names, does not exist"),
        ("{}", r"index.json is damaged: KeyError"),
    ):
        (path / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ModelRefused, match=sentence):
            base_artifact(str(path), tmp_path / "cache")


def test_a_base_that_another_process_has_imported_meanwhile_is_left_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tiny.save(tmp_path / "model", "llama")

    other = base_artifact(str(path), tmp_path / "other").path
    inode = (other / "model.safetensors").stat().st_ino

    @contextmanager
    def late(file: Path, doing: str, *, wait: bool = False) -> Iterator[None]:
        """The other process has let go of the lock just now."""
        with locked(file, doing, wait=wait):
            other.rename(tmp_path / "cache" / other.name)
            yield

    monkeypatch.setattr(inputs, "locked", late)
    found = base_artifact(str(path), tmp_path / "cache")
    assert (found.path / "model.safetensors").stat().st_ino == inode


def test_a_gguf_file_whose_header_lies_is_refused_by_name(tmp_path: Path) -> None:
    content = gguf_file(tmp_path / "whole.gguf", "smollm").read_bytes()
    (tmp_path / "tiny.gguf").write_bytes(content[:16] + (2**60).to_bytes(8, "little") + content[24:])
    with pytest.raises(ModelRefused, match=r"tiny\.gguf cannot be read as a model: its header is damaged \("):
        base_artifact(str(tmp_path / "tiny.gguf"), tmp_path / "cache")
