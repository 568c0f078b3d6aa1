"""Datasets without a network: saved directories, directories of files, and unknown names."""

import builtins
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from pruning.commands.__main__ import main
from pruning.data.documents import Document, Messages, digest_of_source, documents_of
from pruning.data.hub import DatasetReference, column
from pruning.errors import DataError
from server.artifact.checkpoint.reader import Artifact

TEXTS = [f"Paragraph {n} says that {n} times {n} is {n * n}." for n in range(100)]


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def no_chat(_: Messages) -> str:
    raise AssertionError


def test_a_dataset_reference_is_parsed() -> None:
    assert DatasetReference.parse("dataset:a/b") == DatasetReference("a/b")
    assert DatasetReference.parse("dataset:a/b:c:train[10:20]:body") == DatasetReference(
        "a/b", "c", "train[10:20]", "body"
    )
    assert DatasetReference.parse("dataset:a:::d") == DatasetReference("a", column="d")
    for wrong in ("dataset:", "dataset:a:b:c:d:e"):
        with pytest.raises(DataError, match=r"is not dataset:NAME\[:config\]\[:split\]\[:column\]"):
            DatasetReference.parse(wrong)


def test_a_saved_dataset_and_a_dictionary_of_splits(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"id": [1, 2, 3], "text": ["one", "", "three"]})
    rows.save_to_disk(str(tmp_path / "plain"))
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "splits"))
    assert documents_of(f"dataset:{tmp_path / 'plain'}", no_chat) == [
        Document("one", "one"),
        Document("three", "three"),
    ]
    assert column(f"dataset:{tmp_path / 'splits'}::test") == ["one", "", "three"]
    for source, sentence in {
        f"{tmp_path / 'splits'}": "cannot be loaded",  # it has no split `train`
        f"{tmp_path / 'plain'}:::body": "has the columns id, text: name one",
        f"{tmp_path / 'plain'}:::id": "holds int, neither texts nor messages",
    }.items():
        with pytest.raises(DataError, match=sentence):
            documents_of(f"dataset:{source}", no_chat)


def test_files_in_a_directory_chats_included(tmp_path: Path) -> None:
    folder = tmp_path / "chats"
    folder.mkdir()
    line = '{"messages": [{"role": "user", "content": "Hi"}], "body": "x"}\n'
    (folder / "data.jsonl").write_text(line * 2)
    source = f"dataset:{folder}"
    assert documents_of(f"{source}::train[:1]", lambda messages: messages[0]["content"]) == [
        Document("Hi", "Hi", [{"role": "user", "content": "Hi"}])
    ]
    assert column(f"{source}:::body") == ["x", "x"]
    assert digest_of_source(f"{source}:::body") != digest_of_source(source)


@pytest.mark.slow
def test_a_recipe_calibrates_on_a_dataset(recipe: Callable[[], Path], text: Path, tmp_path: Path) -> None:
    datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"))
    digests = []
    for number, source in enumerate((f"dataset:{tmp_path / 'saved'}", str(text))):
        path = recipe()
        path.write_text(path.read_text().replace(f'source = "{text}"', f'source = "{source}"', 1))
        output = tmp_path / f"out-{number}"
        assert main(["prune", str(path), "--output", str(output), "--base-cache", str(tmp_path / "base")]) == 0
        data = Artifact.open(output).lineage.calibration
        assert data is not None
        digests.append(data.digest)
    assert digests[0] == digests[1]  # the same texts, whatever they came in


def test_no_hub_and_no_package_are_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"cannot be loaded: .*Hub.*; is it a dataset here or on a reachable hub\?"):
        column("dataset:nobody/nothing")
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == "datasets":
            raise ImportError
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DataError, match=r"run `pip install 'secateur\[data\]'` first"):
        column("dataset:nobody/nothing")
