"""Tiny artifacts of real architectures, dense, sparse or quantised, as the pipeline would leave them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM

from pruning.model.base import import_base
from pruning.model.source import Source
from server.artifact.checkpoint.digest import weights_digest
from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.lineage import Step, digest_of
from server.artifact.checkpoint.quantised import dequantise
from server.artifact.checkpoint.reader import Artifact
from server.artifact.checkpoint.writer import CheckpointWriter
from server.commands.__main__ import main
from server.text.byte_level import LLAMA3, QWEN2
from tests.conftest import ROOT
from tests.pruning import tiny

TEXT = ROOT / "LICENSE"

Change = Callable[[str, Tensor], tuple[Tensor, Tensor | None]]


VOCABULARY, END = 384, 377
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
CUTS: dict[str, Any] = {
    "digits": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]),
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "llama3": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(LLAMA3), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    ),
    "qwen2": pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    ),
}


def write_tokenizer(folder: Path, cut: str, spare: int = 6) -> None:
    """Write a BPE tokenizer trained on the licence, with ChatML marks and `spare` tokens fewer than embeddings."""
    made = sentencepiece(VOCABULARY - 2 - spare) if cut == "sentencepiece" else byte_level(VOCABULARY - 2 - spare, cut)
    made.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    made.save(str(folder / "tokenizer.json"))
    settings = {"eos_token": "<|im_end|>", "chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def byte_level(size: int, cut: str) -> Tokenizer:
    """A byte-level BPE of `size` tokens, trained on the licence."""
    made = Tokenizer(models.BPE(ignore_merges=cut == "llama3"))
    made.pre_tokenizer, made.decoder = CUTS[cut], decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, initial_alphabet=alphabet)
    made.train_from_iterator([TEXT.read_text()], trainer)
    return made


def sentencepiece(size: int) -> Tokenizer:
    """A BPE of `size` tokens with byte fallback, whose merges are all pairs that make a token, as Gemma's."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.train_from_iterator(
        [TEXT.read_text().replace("\n", " ")], trainers.BpeTrainer(vocab_size=size - 257, show_progress=False)
    )
    found = sorted(trained.get_vocab().items(), key=lambda item: item[1])
    tokens = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *(token for token, _ in found)]
    vocabulary = {token: id for id, token in enumerate(tokens)}
    cuts = [(token[:at], token[at:]) for token, _ in found for at in range(1, len(token))]
    merges = [pair for pair in cuts if all(part in vocabulary for part in pair)]
    made = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return made


def artifact(folder: Path, change: Change, kind: str = "llama", cut: str = "digits", **sizes: Any) -> Artifact:
    """An artifact of a tiny model of the architecture `kind`, each weight changed."""
    model = tiny.save(folder / "model", kind, vocab_size=VOCABULARY, eos_token_id=END, bos_token_id=None, **sizes)
    write_tokenizer(model, cut)
    import_base(Source(model, "0" * 64), folder / "base")
    return changed(Artifact.open(folder / "base"), folder / "artifact", change)


def changed(base: Artifact, path: Path, change: Change) -> Artifact:
    """The artifact `base` with each weight changed, as one step of its lineage."""
    with CheckpointWriter(path) as writer:
        for name, tensor in base.tensors():
            writer.add(name, *change(name, tensor))
        for name in base.lineage.files:
            if name != "model.safetensors":
                writer.copy(base.path / name)
        writer.finish(base.lineage)
    before, after = weights_digest(base), weights_digest(Artifact.open(path))
    step = Step("changed", {}, {}, 1.0, 1, parent_digest=before, digest=after)
    lineage = msgspec.structs.replace(Artifact.open(path).lineage, steps=(step,))
    (path / "lineage.json").write_bytes(msgspec.json.encode(lineage))
    return Artifact.open(path)


def dense(name: str, tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    return tensor, None


def half(name: str, tensor: Tensor) -> tuple[Tensor, Tensor | None]:
    """The larger two of every four weights of a block."""
    if ".layers." not in name or tensor.dim() != 2:
        return tensor, None
    runs = tensor.reshape(len(tensor), -1, 4)
    kept = runs.abs().float().argsort(dim=2).argsort(dim=2) >= 2
    return (runs * kept).reshape(tensor.shape), None


def codes(bits: int, group: int, *, embeddings: bool = False) -> Change:
    """Random codes of every value that `bits` have, with scales of either sign, of the size of the weights."""

    def change(name: str, tensor: Tensor) -> tuple[Tensor, Tensor | None]:
        if tensor.dim() != 2 or not (embeddings or ".layers." in name):
            return tensor, None
        generator = torch.Generator().manual_seed(len(name) + tensor.numel())
        most = 2 ** (bits - 1)
        found = torch.randint(-most, most, tensor.shape, generator=generator).to(torch.int8)
        found.view(-1)[:2] = torch.tensor([-most, most - 1])
        signs = torch.randint(0, 2, (len(tensor), -(-tensor.shape[1] // group)), generator=generator) * 2 - 1
        scales = (signs * (1 + torch.rand(signs.shape, generator=generator)) * 0.3 / most).half()
        return dequantise(found, scales), scales

    return change


def export(source: Artifact, form: str, *words: str) -> Path:
    """Export with the command; returns the directory."""
    target = source.path.with_name(f"{source.path.name}-{form}")
    assert main(["export", str(source.path), "--to", form, "--output", str(target), *words]) == 0
    return target


def retokenised(source: Artifact, change: dict[str, Any]) -> Artifact:
    """The artifact with parts of its tokenizer.json exchanged, and recorded so."""
    file = source.path / "tokenizer.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    files = source.lineage.files | {file.name: digest_of(file)}
    lineage = msgspec.structs.replace(source.lineage, files=files)
    (source.path / "lineage.json").write_bytes(msgspec.json.encode(lineage))
    return Artifact.open(source.path)


def exact(artifact: Artifact, where: str = "") -> Any:
    """transformers' model of the artifact in float32, with code * scale where there are codes and `where` in a name."""
    folder = artifact.path.with_name(f"{artifact.path.name}-hf")
    model: Any = AutoModelForCausalLM.from_pretrained(
        folder if folder.exists() else export(artifact, "hf"), dtype=torch.float32
    )
    for name, parameter in model.named_parameters():
        layout, scales = artifact.layout(name), artifact.scales(name)
        if isinstance(layout, Quantised) and scales is not None and where in name:
            spread = scales.float().repeat_interleave(layout.group, dim=1)[:, : layout.columns]
            parameter.data = artifact.codes(name).float() * spread
    return model.eval()
