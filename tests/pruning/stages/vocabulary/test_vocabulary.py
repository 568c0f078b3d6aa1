"""A smaller vocabulary: the kept tokens, round trips of every string, loaders, and refusals before any work."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from pruning.commands.__main__ import main
from pruning.data.self_calibration import sample_base
from pruning.errors import ModelRefused, RecipeError
from pruning.recipe.options import Layerwise
from pruning.recipe.recipe import read
from pruning.run import pipeline
from pruning.stages.inputs import prepare
from pruning.stages.layerwise import layerwise
from pruning.stages.vocabulary.bpe import ids_of, without_others
from pruning.stages.vocabulary.token_choice import choose
from server.artifact.checkpoint.layouts import Quantised
from server.artifact.checkpoint.reader import Artifact
from server.text.tokenizer import Tokenizer as Serving
from tests.pruning import tiny
from tests.server.artifact.export import made
from tests.server.artifact.export.llama_cpp import loaded

Write = Callable[[str], Path]
STAGE = '[[stages]]\nkind = "vocabulary"\n'
DEPTH = '[[stages]]\nkind = "depth"\nremove = 1\n'
SYLLABLES = ["ka", "lo", "mi", "te", "ru", "san", "der", "pro", "ing", "es", "über", "naï", "ñ", "ж", "の"]


def words(seed: int, count: int) -> list[str]:
    generator = random.Random(seed)
    return ["".join(generator.choices(SYLLABLES, k=generator.randint(1, 4))) for _ in range(count)]


def sentences(seed: int, vocabulary: list[str], count: int) -> str:
    generator = random.Random(seed)
    return "\n\n".join(" ".join(generator.choices(vocabulary, k=12)) + f" {n}." for n in range(count))


def strings() -> Iterator[str]:
    """Random Unicode, with few and with many kinds of characters, and text."""
    generator = random.Random(5)
    for top in (0x80, 0x250, 0x3000, 0xD800):
        for _ in range(40):
            yield "".join(chr(generator.randrange(top)) for _ in range(generator.randint(0, 30)))
    for _ in range(40):
        yield "".join(chr(generator.randrange(0xE000, 0x110000)) for _ in range(5)) + " ".join(words(6, 5))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model that most tests take."""
    return save(tmp_path_factory.mktemp("vocabulary") / "model")


def save(path: Path, kind: str = "llama", *, tied: bool = True, **changes: Any) -> Path:
    """A tiny model whose tokenizer has 600 tokens, of which the text uses few; its embeddings have 40 rows more."""
    tiny.save(path, kind, vocab_size=640, tie_word_embeddings=tied, eos_token_id=0, bos_token_id=1, **changes)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        [sentences(1, words(2, 300), 300)],
        trainers.BpeTrainer(
            vocab_size=599, special_tokens=["<end>"], initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet())
        ),
    )
    tokenizer.add_special_tokens(["<start>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<start> $A", special_tokens=[("<start>", tokenizer.token_to_id("<start>"))]
    )
    assert tokenizer.get_vocab_size() == 600
    tokenizer.save(str(path / "tokenizer.json"))
    added = {str(i): {"content": t, "special": True} for i, t in ((0, "<end>"), (599, "<start>"))}
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>", "added_tokens_decoder": added}))
    generation = {"eos_token_id": [0, 599], "bos_token_id": 599, "suppress_tokens": [-1, 598], "temperature": 1}
    (path / "generation_config.json").write_text(json.dumps(generation))
    config = json.loads((path / "config.json").read_text()) | {"bos_token_id": 599}
    (path / "config.json").write_text(json.dumps(config))
    (path.parent / "text.txt").write_text(sentences(3, words(2, 30), 150))
    return path


def recipe(folder: Path, path: Path, stages: str) -> Path:
    text = folder.parent / "text.txt"
    path.mkdir(exist_ok=True)
    (path / "recipe.toml").write_text(
        f'base = "{folder}"\n'
        f'[calibration]\nsource = "{text}"\nbuckets = [0, 1, 2, 3, 4]\nsequences = 4\ntokens = 32\n'
        f'[evaluation]\nsource = "{text}"\nbuckets = [7, 8, 9]\ntokens = 96\nwindow = 32\n{stages}'
    )
    return path / "recipe.toml"


def run(recipe: Path, folder: Path) -> int:
    return main(["prune", str(recipe), "--output", str(folder / "out"), "--base-cache", str(folder / "base")])


def prune(recipe: Path, folder: Path) -> Artifact:
    assert run(recipe, folder) == 0
    return Artifact.open(folder / "out")


def logits(path: Path, ids: Tensor) -> Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        result: Tensor = model(input_ids=ids).logits
    return result


def tokenizers(folder: Path, out: Path) -> tuple[Tokenizer, Tokenizer]:
    return Tokenizer.from_file(str(folder / "tokenizer.json")), Tokenizer.from_file(str(out / "tokenizer.json"))


@pytest.mark.parametrize("tied", [True, False])
def test_every_string_round_trips_and_kept_tokens_encode_alike(tied: bool, tmp_path: Path) -> None:
    folder = save(tmp_path / "model", tied=tied)
    artifact = prune(recipe(folder, tmp_path, STAGE + f"buckets = {list(range(10))}\n"), tmp_path)
    before, after = tokenizers(folder, artifact.path)
    size = artifact.config["vocab_size"]
    assert size == after.get_vocab_size() < 600
    assert size % 64 == 0
    for string in strings():
        assert after.decode(after.encode(string, add_special_tokens=False).ids) == string
    for text in (folder.parent / "text.txt").read_text().split("\n\n"):
        assert after.encode(text).tokens == before.encode(text).tokens
    kept = [before.get_vocab()[token] for token, _ in sorted(after.get_vocab().items(), key=lambda item: item[1])]
    assert kept == sorted(kept), "the order of the ids is that of the merges"
    ids = torch.tensor([kept[10:40], kept[200:230]])
    expected = logits(folder, ids)[..., kept]
    new = torch.tensor([list(range(10, 40)), list(range(200, 230))])
    torch.testing.assert_close(logits(artifact.path, new), expected, rtol=1e-4, atol=1e-5)
    [step] = artifact.lineage.steps
    assert step.options["tokens"] == size
    assert step.parameters == sum(artifact.tensor(name).numel() for name in artifact.names())


def test_every_id_in_the_files_is_renumbered(folder: Path, tmp_path: Path) -> None:
    artifact = prune(recipe(folder, tmp_path, STAGE), tmp_path)
    before, after = tokenizers(folder, artifact.path)
    start, named = after.token_to_id("<start>"), after.token_to_id(before.id_to_token(598) or "")
    assert start == artifact.config["vocab_size"] - 1
    assert (artifact.config["eos_token_id"], artifact.config["bos_token_id"]) == (0, start)
    generation = json.loads((artifact.path / "generation_config.json").read_text())
    assert generation == {
        "eos_token_id": [0, start], "bos_token_id": start, "suppress_tokens": [-1, named], "temperature": 1
    }  # fmt: skip
    settings = json.loads((artifact.path / "tokenizer_config.json").read_text())
    assert {int(id): token["content"] for id, token in settings["added_tokens_decoder"].items()} == {
        0: "<end>", start: "<start>"
    }  # fmt: skip
    assert after.encode("ka").ids[0] == start, "the post-processor adds another token"
    assert after.encode("<end>", add_special_tokens=False).ids == [0]
    stock = AutoTokenizer.from_pretrained(artifact.path)
    assert stock("kalo<end>", add_special_tokens=False).input_ids == after.encode("kalo<end>").ids[1:]


def test_self_generated_text_is_counted_despite_ids_without_a_token(folder: Path, tmp_path: Path) -> None:
    path = recipe(folder, tmp_path, STAGE + 'source = "self"\n')
    out = prune(path, tmp_path)
    inputs = prepare(read(path), tmp_path / "base")
    ids = set(sample_base(inputs.base, 4, 32, 0).flatten().tolist())
    assert max(ids) >= 600, "the embeddings have rows that no token has"
    before, after = tokenizers(folder, out.path)
    assert {before.id_to_token(id) for id in ids if id < 600} <= after.get_vocab().keys()
    calibrated = set(inputs.calibration[0].flatten().tolist())
    assert not {before.id_to_token(id) for id in calibrated} <= after.get_vocab().keys()


def test_a_token_that_the_settings_alone_call_added_stays(folder: Path, tmp_path: Path) -> None:
    unused = str(Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() - 3)
    base = changed(folder, tmp_path / "model", "tokenizer_config.json", added_tokens_decoder={unused: {"content": "x"}})
    out = prune(recipe(base, tmp_path, STAGE), tmp_path)
    [kept] = json.loads((out.path / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    before, after = tokenizers(base, out.path)
    assert after.id_to_token(int(kept)) == before.id_to_token(int(unused))


def test_the_server_counts_with_tiktoken(folder: Path, tmp_path: Path) -> None:
    artifact = prune(recipe(folder, tmp_path, STAGE), tmp_path)
    serving = Serving.load(artifact.path)
    after = tokenizers(folder, artifact.path)[1]
    assert serving.encoding is not None, serving.encoding_reason
    assert serving.stop_ids == {0, after.token_to_id("<start>")}
    for string in strings():
        ids = after.encode(string, add_special_tokens=False).ids
        assert serving.encode(string) == ids == serving.encoding.encode(string, disallowed_special=())
        assert serving.count(string) == len(ids)
        assert serving.decode(ids) == string


def test_with_uncovered_text_perplexity_is_per_token_of_the_base(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(folder, tmp_path, DEPTH + STAGE + "keep = 320\n")
    artifact = prune(path, tmp_path)
    assert artifact.config["vocab_size"] == 320
    assert artifact.lineage.steps[1].options["covered"] < 0.9
    before, after = tokenizers(folder, artifact.path)
    losses = []
    for window in prepare(read(path), tmp_path / "base").evaluation[0].ids:
        alone = [before.decode([id], skip_special_tokens=False) for id in window.tolist()]
        parts = [after.encode(text, add_special_tokens=False).ids for text in alone]  # each token's text alone
        ids = torch.tensor([[id for part in parts for id in part]])
        assert ids.shape[1] > 33
        scores = logits(artifact.path, ids)[0].log_softmax(dim=-1)
        first = len(parts[0])
        total = sum(float(scores[at - 1, ids[0, at]]) for at in range(first, ids.shape[1]))
        losses.append(-total / 31)
    evaluation = artifact.lineage.evaluation
    assert evaluation is not None
    expected = float(torch.tensor(losses).mean().exp())
    assert evaluation.perplexity["pruned"] == pytest.approx(expected, rel=1e-4)
    assert "its loss is per token of the base's vocabulary" in capsys.readouterr().out


def test_quantised_weights_stay_so(folder: Path, tmp_path: Path) -> None:
    gptq = '[[stages]]\nkind = "awq"\nbits = 4\ngroup = 32\n'
    artifact = prune(recipe(folder, tmp_path, gptq + STAGE), tmp_path)
    assert isinstance(artifact.layout("model.layers.0.mlp.up_proj.weight"), Quantised)
    assert artifact.tensor("model.embed_tokens.weight").shape[0] == artifact.config["vocab_size"] < 600


SPARSE = '[[stages]]\nkind = "layerwise"\ntechnique = { name = "sparsegpt", sparsity = 0.5 }\ncorrection = 0.5\n'
RECOVERY = '[[stages]]\nkind = "distill"\ntokens = 256\nlength = 32\nheld_out = 2\n'


def test_later_stages_work_on_the_remaining_tokens(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[Artifact, Tensor]] = []
    pruned = layerwise.apply

    def see(stage: Any, model: Any, context: Any) -> Any:
        seen.append((context.inputs.base, context.inputs.calibration[0]))
        return pruned(stage, model, context)

    monkeypatch.setitem(pipeline.APPLY, Layerwise, see)
    artifact = prune(recipe(folder, tmp_path, STAGE + "keep = 320\n" + SPARSE + DEPTH + RECOVERY), tmp_path)
    [(given, calibration)] = seen
    assert given.config["vocab_size"] == artifact.config["vocab_size"] == 320
    assert calibration.shape == (4, 32)
    after = tokenizers(folder, artifact.path)[1]
    text = (folder.parent / "text.txt").read_text()
    assert all(part in text for part in after.decode(calibration[0].tolist()).split("<end>")[:-1])
    assert [step.technique for step in artifact.lineage.steps] == ["vocabulary", "sparsegpt", "depth", "distill"]
    assert logits(artifact.path, calibration[:1]).shape[-1] == 320


def test_gemma_s_tokenizer_is_cut_fitted_and_read_alike_by_llama_cpp(tmp_path: Path) -> None:
    folder = tiny.save(
        tmp_path / "model", "gemma3_text", vocab_size=400, num_hidden_layers=6, query_pre_attn_scalar=16,
        sliding_window=8, pad_token_id=None, bos_token_id=398, eos_token_id=399,
    )  # fmt: skip
    tokenizer = made.sentencepiece(398)
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 398)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": "<bos>", "eos_token": "<eos>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "text.txt").write_text(made.TEXT.read_text())
    fit = "keep = 320\nfit = { tokens = 512, length = 32, held_out = 2, batch = 4 }\n"
    artifact = prune(recipe(folder, tmp_path, STAGE + fit), tmp_path)
    before, after = tokenizers(folder, artifact.path)
    assert artifact.config["vocab_size"] == after.get_vocab_size() == 320
    for string in strings():
        assert after.decode(after.encode(string).ids) == before.decode(before.encode(string).ids)
    with loaded(made.export(artifact, "gguf"), 320) as llama:
        for string in strings():
            assert llama.encode(string) == after.encode(string, add_special_tokens=False).ids


def toy(letters: str, merges: list[tuple[str, str]]) -> dict[str, Any]:
    """A parsed tokenizer.json whose letters each represent a byte."""
    tokens = [*letters, *map("".join, merges)]
    return {
        "model": {"type": "BPE", "vocab": {token: id for id, token in enumerate(tokens)}, "merges": merges},
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
        "added_tokens": [],
    }


LETTERS = "".join(map(chr, range(0x61, 0x61 + 60)))


def test_the_most_frequent_tokens_stay_with_the_tokens_they_are_merged_from() -> None:
    merges = [("a", "b"), ("h", "i"), ("j", "k"), ("d", "e"), ("ab", "c"), ("f", "g"), ("a", "d")]
    counts = {"fg": 9, "abc": 5, "de": 3, "hi": 2, "a": 1}
    kept = choose(toy(LETTERS, merges), [], counts, 64)
    assert kept == {*LETTERS, "fg", "abc", "ab", "de"}
    kept = choose(toy(LETTERS, merges), ["jk"], counts, 64)
    assert kept == {*LETTERS, "jk", "fg", "abc", "ab"}
    kept = choose(toy(LETTERS, merges), [], {"fg": 1, "de": 1}, None)
    assert kept == {*LETTERS, "fg", "de", "ab", "hi"}, "unused ones of lowest id make the number round"


def test_a_token_with_two_derivations_keeps_the_one_in_use() -> None:
    merges = [("b", "c"), ("a", "b"), ("a", "bc"), *(("x", letter) for letter in "bcdefgh")]
    definition = toy(LETTERS[:58], [*merges, ("ab", "c")])  # "abc" comes from a + bc: b + c is merged first
    kept = choose(definition, [], {"abc": 2}, 64)
    assert {"abc", "bc"} < kept
    before = Tokenizer.from_str(json.dumps(definition))
    number = {
        id: new for new, id in enumerate(sorted(ids_of(definition)[token] for token in {*LETTERS[:58], "abc", "bc"}))
    }
    after = Tokenizer.from_str(json.dumps(without_others(definition, number)))
    assert before.encode("abcabb").tokens == ["abc", "ab", "b"]
    assert after.encode("abcabb").tokens == ["abc", "a", "b", "b"]


def test_byte_fallback_tokens_stay(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse(), decoders.Metaspace()])
    fallback = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    text = sentences(1, words(2, 300), 100)
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=700, special_tokens=fallback))
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    counts = dict.fromkeys(tokenizer.encode("kalo mite").tokens, 1)
    kept = choose(definition, [], counts, 320)
    assert len(kept) == 320
    assert {*fallback, *counts} < kept
    number = {id: new for new, id in enumerate(sorted(ids_of(definition)[token] for token in kept))}
    smaller = Tokenizer.from_str(json.dumps(without_others(definition, number)))
    assert smaller.encode("kalo mite").tokens == list(tokenizer.encode("kalo mite").tokens)
    for string in (*strings(), text):
        assert smaller.decode(smaller.encode(string).ids) == tokenizer.decode(tokenizer.encode(string).ids)


@pytest.mark.parametrize(
    ("definition", "keep", "error", "sentence"),
    [
        (toy(LETTERS, [("a", "b")] * 1), None, RecipeError, "would remove none of the 61 tokens"),
        (toy(LETTERS * 1 + "".join(map(chr, range(0x100, 0x130))), [("a", "b")] * 20), 64, RecipeError, "at least 128"),
        (toy(LETTERS, []) | {"pre_tokenizer": None}, 64, ModelRefused, "the tokenizer has no byte tokens"),
        ({"model": {"type": "WordLevel", "vocab": {}}}, 64, ModelRefused, "is not a plain byte-pair encoding"),
    ],
)
def test_what_cannot_be_made_smaller_is_refused(
    definition: dict[str, Any], keep: int | None, error: type[Exception], sentence: str
) -> None:
    with pytest.raises(error, match=sentence):
        choose(definition, [], {"a": 1}, keep)


def changed(folder: Path, target: Path, name: str, **values: Any) -> Path:
    """A copy of the model with some values of one of its files changed."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (target / name).write_text(json.dumps(json.loads((target / name).read_text()) | values))
    (target.parent / "text.txt").write_text((folder.parent / "text.txt").read_text())
    return target


@pytest.mark.parametrize(
    ("name", "values", "stages", "sentence"),
    [
        ("generation_config.json", {"pad_token_id": 630}, STAGE, "names the token id 630, which tokenizer.json lacks"),
        ("generation_config.json", {"eos_token_id": [0, {}]}, STAGE, "names the token id {}, which tokenizer.json"),
        ("tokenizer_config.json", {"added_tokens_decoder": [0]}, STAGE, "not an object whose keys are ids of tokens"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"630": {}}}, STAGE, "not an object whose keys are ids of"),
        ("config.json", {"max_position_embeddings": 33}, STAGE + "keep = 320\n", "choose a window below 32"),
        ("config.json", {}, STAGE + "keep = 256\n", "keep = 256 is too small: 268 tokens are single bytes, special"),
        ("config.json", {}, STAGE + "keep = 300\n", "Expected `int` that's a multiple of 64"),
        ("config.json", {}, STAGE + STAGE, "vocabulary is there twice: remove all tokens at once"),
        ("config.json", {}, STAGE + "fit = { tokens = 64, held_out = 999 }", "too few to hold out 999 x 128 tokens"),
        ("config.json", {}, STAGE + 'source = "none.txt"\n', "none.txt does not exist"),
    ],
)
def test_it_is_refused_before_any_work(
    folder: Path, tmp_path: Path, name: str, values: dict[str, Any], stages: str, sentence: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    base = changed(folder, tmp_path / "model", name, **values)
    wanda = '[[stages]]\nkind = "layerwise"\ntechnique = { name = "wanda", sparsity = 0.5 }\n'
    assert run(recipe(base, tmp_path, wanda + stages), tmp_path) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.work" / "stage-0").exists(), "an earlier stage was begun"


def test_n_positions_bounds_retokenised_windows_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save(tmp_path / "model", "gpt2", max_position_embeddings=33)
    assert run(recipe(base, tmp_path, STAGE + "keep = 320\n"), tmp_path) == 2
    assert "but the model takes 33: choose a window below 32" in capsys.readouterr().err


def test_evaluate_warns_that_its_tokens_differ_from_the_bases(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    prune(recipe(folder, tmp_path, STAGE), tmp_path)
    arguments = ["evaluate", str(tmp_path / "out"), "--source", str(folder.parent / "text.txt")]
    assert main([*arguments, "--tokens", "64", "--window", "32"]) == 0
    assert "its vocabulary was reduced: a perplexity per token of its own" in caplog.text
