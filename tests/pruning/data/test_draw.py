import hashlib
import shutil
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, processors

from pruning.data.documents import Document
from pruning.data.draw import Draw, draw, ids_digest
from pruning.data.encoder import Encoder
from pruning.errors import DataError
from server.artifact.checkpoint.reader import Artifact


def test_ids_are_the_shuffled_texts_with_an_end_after_each(text: Path, encoder: Encoder) -> None:
    ids, data = draw(Draw(str(text), range(10), 4, 50), encoder)
    assert ids.shape == (4, 50)
    assert ids.dtype == torch.int64
    flat = ids.flatten().tolist()
    end = flat.index(256)
    first = bytes(text.read_bytes())
    assert encoder.encode(Document("", first.decode().split("\n\n")[0]))[-1] == 256
    assert flat[: end + 1] in [encoder.encode(Document("", paragraph)) for paragraph in first.decode().split("\n\n")]
    assert (data.sequences, data.tokens, data.seed) == (4, 50, 0)
    assert data.digest == hashlib.sha256(b"".join(i.to_bytes(8, "little") for i in flat)).hexdigest()


def test_each_sequence_begins_as_the_tokenizer_begins_a_text(text: Path, artifact: Artifact, tmp_path: Path) -> None:
    folder = shutil.copytree(artifact.path, tmp_path / "model")
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    library.add_special_tokens(["<start>"])
    library.post_processor = processors.TemplateProcessing(single="<start> $A", special_tokens=[("<start>", 257)])
    library.save(str(folder / "tokenizer.json"))
    config = artifact.config | {"vocab_size": 258}
    begun, without = Encoder(Artifact(folder, artifact.lineage, config)), Encoder(artifact)
    ids, data = draw(Draw(str(text), range(10), 4, 51), begun)
    assert ids[:, 0].tolist() == [257] * 4
    assert torch.equal(ids[:, 1:], draw(Draw(str(text), range(10), 4, 50), without)[0]), "and the text goes on"
    assert data.tokens == 51


def test_the_same_seed_draws_the_same_ids_and_another_does_not(text: Path, encoder: Encoder) -> None:
    ids, data = draw(Draw(str(text), range(10), 4, 50, seed=1), encoder)
    again, _ = draw(Draw(str(text), range(10), 4, 50, seed=1), encoder)
    other, other_data = draw(Draw(str(text), range(10), 4, 50, seed=2), encoder)
    assert torch.equal(ids, again)
    assert not torch.equal(ids, other)
    assert data.digest != other_data.digest
    assert ids_digest(ids) == data.digest


def test_buckets_do_not_share_texts(text: Path, encoder: Encoder) -> None:
    low, _ = draw(Draw(str(text), range(5), 1, 900), encoder)
    high, _ = draw(Draw(str(text), range(5, 10), 1, 900), encoder)
    assert not sentences(low) & sentences(high)


def sentences(ids: torch.Tensor) -> set[tuple[int, ...]]:
    """The texts between end-of-sequence ids, without the last one, which may be cut."""
    found: set[tuple[int, ...]] = set()
    current: list[int] = []
    for token in ids.flatten().tolist():
        if token == 256:
            found.add(tuple(current))
            current = []
        else:
            current.append(token)
    return found


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", "", r"gives 0 tokens in 0 texts of the buckets \[0, 1, .* but 4 x 50 = 200 are needed"),
        ("a.txt", "too short", r"gives 10 tokens in 1 texts of .* but 4 x 50 = 200 are needed"),
        ("a.json", "{", r"a\.json cannot be read as \.json: Expecting property name"),
        ("a.json", "[1]", r"a\.json is in no known form"),
        ("a.jsonl", '{"body": "x"}', r"a\.jsonl is in no known form \('a record has none of text, extract"),
        ("a.json", '{"a": "x", "b": "y", "a": "z"}', r"cannot be read as \.json: 'a' occurs twice"),
        ("a.json", '{"a": {"text": null}}', r"in no known form \(NoneType where a text was expected\)"),
        ("a.json", '{"\\ud800": "x"}', r"cannot be read as \.json: .*surrogates not allowed"),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": null}',
            r"in no known form \(NoneType where a text was.*\), in line 2: the docs",
        ),
        ("a.jsonl", '{"text": "x"}\n{"text": "', r"cannot be read as \.jsonl: Unterminated string .*, in line 2$"),
        ("a.jsonl", '\n{"text": "\\ud800"}', r"cannot be read as \.jsonl: .*surrogates not allowed, in line 2"),
        ("a.jsonl", "[" * 100_000, r"cannot be read as \.jsonl: maximum recursion depth .*, in line 1"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}", r"cannot be read as \.jsonl: Exceeds the limit .*, in line 1"),
        ("a.jsonl", '{"messages": "Hi"}', r"in no known form \(messages are str, not a list\), in line 1"),
        ("a.jsonl", '{"question": "x", "answer": null}', r"in no known form \(NoneType where a text was expected\)"),
        ("a.jsonl", '{"messages": []}', r"cannot be rendered: The model has no chat template"),
    ],
)
def test_bad_text_is_one_sentence(tmp_path: Path, encoder: Encoder, name: str, content: str, sentence: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=sentence):
        draw(Draw(str(path), range(10), 4, 50), encoder)


def test_a_contiguous_text_keeps_its_order(text: Path, encoder: Encoder) -> None:
    ids, _ = draw(Draw(str(text), range(10), 4, 50, contiguous=True), encoder)
    assert ids.flatten().tolist() == encoder.ids(text.read_text())[: 4 * 50]
