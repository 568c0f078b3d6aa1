"""Tokenizer files in every form that models have them in."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from server.errors import ArtifactError
from server.text.tokenizer_files import TokenizerFiles, read


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a tokenizer.json, whose token 0 is `<end>`."""
    library = Tokenizer(models.BPE(vocab={"<end>": 0, "a": 1}, merges=[]))
    library.add_special_tokens(["<end>"])
    library.add_tokens(["<think>"])
    library.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def with_settings(folder: Path, **settings: Any) -> TokenizerFiles:
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return read(folder)


@pytest.mark.parametrize(
    ("template", "source"),
    [
        ("D", "D"),
        ([{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}], "D"),
        ([{"name": "tool_use", "template": "T"}, "x", {}], None),
        ({"tool_use": "T", "default": "D"}, "D"),
        ({"tool_use": "T"}, None),
        (None, None),
        ("", None),
        (1, None),
    ],
)
def test_the_template_in_each_form(folder: Path, template: Any, source: str | None) -> None:
    assert with_settings(folder, chat_template=template).chat_template == source
    (folder / "chat_template.jinja").write_text("ü", encoding="utf-8")
    assert read(folder).chat_template == "ü"


def test_every_file_but_the_tokenizer_may_be_missing(folder: Path) -> None:
    files = read(folder)
    assert (files.chat_template, files.special_tokens, files.stop_ids) == (None, {}, frozenset())
    assert files.special_ids == {"<end>": 0}
    assert files.library.encode("a<end>").ids == [1, 0]


def test_special_tokens_are_texts_or_objects_with_their_content(folder: Path) -> None:
    files = with_settings(
        folder, bos_token={"content": "<s>", "lstrip": False}, eos_token="<end>", pad_token=None, unk_token={}, x="y"
    )
    assert files.special_tokens == {"bos_token": "<s>", "eos_token": "<end>"}


def test_stop_ids_come_from_every_file_that_names_one(folder: Path) -> None:
    assert with_settings(folder, eos_token="<end>").stop_ids == {0}
    (folder / "config.json").write_text('{"eos_token_id": 7}')
    (folder / "generation_config.json").write_text('{"eos_token_id": [8, 9, null]}')
    assert read(folder).stop_ids == {0, 7, 8, 9}
    assert with_settings(folder, eos_token="<think>").stop_ids == {7, 8, 9}


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("tokenizer.json", b"{}", r"tokenizer\.json is not a tokenizer: "),
        ("tokenizer.json", None, r"tokenizer\.json cannot be read: No such file or directory\."),
        ("tokenizer_config.json", b"{", r"tokenizer_config\.json cannot be read as a JSON object: "),
        ("tokenizer_config.json", b"[]", r"tokenizer_config\.json cannot be read as a JSON object: "),
        ("generation_config.json", b"\xff", r"generation_config\.json cannot be read as a JSON object: "),
        ("config.json", b"null", r"config\.json cannot be read as a JSON object: "),
        ("chat_template.jinja", b"\xff", r"chat_template\.jinja is not UTF-8: "),
    ],
)
def test_the_damaged_file_is_named(folder: Path, name: str, content: bytes | None, sentence: str) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(ArtifactError, match=sentence):
        read(folder)
