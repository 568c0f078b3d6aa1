import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest

from pruning.data.documents import Document, Messages, read
from pruning.errors import DataError
from pruning.evaluation.tasks import task as tasks
from pruning.evaluation.tasks.reading import read_task


def no_chat(_: Messages) -> str:
    raise AssertionError


def test_plain_text_json_lines_and_a_json_object_are_read(tmp_path: Path) -> None:
    plain, lines, titled = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.json"
    plain.write_text("one\ntwo\n\nthree\n\n \n\n")
    lines.write_text('{"text": "one"}\n\n{"messages": [{"role": "user", "content": "two"}], "title": "T"}\n')
    titled.write_text(json.dumps({"A": "one", "B": {"extract": "two", "title": "x"}, "C": " "}))
    assert read(plain, no_chat) == [Document("one\ntwo", "one\ntwo"), Document("three", "three")]
    turns = [{"role": "user", "content": "two"}]
    found = read(lines, lambda messages: f"<{messages[0]['content']}>")
    assert found == [Document("one", "one"), Document("T", "<two>", turns)]
    assert read(titled, no_chat) == [Document("A", "one"), Document("B", "two")]


def test_a_list_of_records_and_gzipped_files_are_read(tmp_path: Path) -> None:
    listed = [
        {"title": "T", "content": "one"},
        {"subject": "S", "description": "two"},
        "three",
        {"question": "q", "answers": ["a", "b"]},
        {"text": "never", "held_out": True},
    ]
    (tmp_path / "a.json.gz").write_bytes(gzip.compress(json.dumps(listed).encode()))
    found = read(tmp_path / "a.json.gz", lambda messages: "|".join(turn["content"] for turn in messages))
    assert [(text.title, text.body) for text in found] == [("T", "one"), ("S", "two"), ("three", "three"), ("q", "q|a")]
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"one\r\n\r\ntwo"))
    assert [text.body for text in read(tmp_path / "b.txt.gz", no_chat)] == ["one", "two"]
    (tmp_path / "c.txt.gz").write_bytes(gzip.compress(b"one")[:-4])
    with pytest.raises(DataError, match=r"c\.txt\.gz cannot be read as \.gz"):
        read(tmp_path / "c.txt.gz", no_chat)


def test_without_a_title_the_question_or_text_is_the_title(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    values = [
        {"text": "one", "title": None},
        {"text": "two", "title": ""},
        {"question": "q", "answer": "a", "title": ""},
    ]
    lines.write_text("\n".join(map(json.dumps, values)))
    assert [text.title for text in read(lines, lambda _: "chat")] == ["one", "two", "q"]


def test_a_conversation_has_the_same_title_as_in_a_chat_task(tmp_path: Path) -> None:
    chats = [
        [("system", "be kind"), ("user", f"question {n}"), ("assistant", f"answer {n}"), ("assistant", "more")]
        for n in range(30)
    ]
    lines = [{"messages": [{"role": role, "content": said} for role, said in chat]} for chat in chats]
    file = tmp_path / "chats.jsonl"
    file.write_text("\n".join(map(json.dumps, lines)))
    found = read(file, lambda messages: f"today: {messages[1]['content']}")
    assert [text.title for text in found] == [f"answer {n}" for n in range(30)]
    (tmp_path / "task.toml").write_text(f'kind = "chat"\nname = "chats"\nitems = "{file}"\nbuckets = [0, 1, 2]\n')
    task = read_task(tmp_path / "task.toml")
    assert isinstance(task, tasks.ChatTask)
    judged = {item.messages[1].content for item in task.items if isinstance(item, tasks.Transcript)}
    trained = {text.body.removeprefix("today: ") for text in found if text.bucket not in (0, 1, 2)}
    assert len(judged) + len(trained) == 30
    assert not judged & trained


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson"])
def test_held_out_lines_are_never_read(tmp_path: Path, name: str) -> None:
    lines = tmp_path / name
    items = [{"question": f"q{n}", "answer": "a", "held_out": n == 1} for n in range(3)]
    lines.write_text("\n".join([*map(json.dumps, items), '{"text": "secret", "held_out": true}']))
    found = read(lines, lambda messages: "|".join(f"{turn['role']} {turn['content']}" for turn in messages))
    assert [document[:2] for document in found] == [("q0", "user q0|assistant a"), ("q2", "user q2|assistant a")]
    assert found[0].messages == [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a"}]


def test_a_bucket_is_the_sha1_of_the_title_modulo_ten() -> None:
    assert Document("Alan Turing", "x").bucket == int(hashlib.sha1(b"Alan Turing").hexdigest(), 16) % 10
    buckets = [Document(str(n), "").bucket for n in range(1000)]
    assert all(70 < buckets.count(bucket) < 130 for bucket in range(10))


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_a_byte_order_mark_and_carriage_returns_are_dropped(tmp_path: Path, name: str) -> None:
    content = {
        "a.txt": "x y\r\n\r\nz",
        "a.jsonl": '{"text": "x y"}\r\n{"text": "z"}\r\n',
        "a.json": '{"a": "x y", "b": "z"}',
    }
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content[name].encode())
    assert [text.body for text in read(tmp_path / name, no_chat)] == ["x y", "z"]


def test_unicode_line_separators_do_not_end_a_json_line(tmp_path: Path) -> None:
    body = "a\u2028b\u2029c\x85d"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": body}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [text.body for text in read(tmp_path / "a.jsonl", no_chat)] == [body]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"a\.txt is a pipe or a device, which cannot be read twice"):
        read(tmp_path / "a.txt", no_chat)


def test_bytes_that_are_not_utf_8_are_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"cannot be read as \.txt"):
        read(tmp_path / "a.txt", no_chat)
