import hashlib
import json
import os
from pathlib import Path

import pytest
import torch

from pruning.data.draw import Draw, Encoder, Text, digest_of, draw, read
from pruning.errors import DataError, ModelRefused
from pruning.evaluation.tasks import task as tasks
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import Artifact
from server.text.chat_template import ChatTemplate


@pytest.fixture(scope="module")
def artifact(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return base_artifact(str(model), tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def encoder(artifact: Artifact) -> Encoder:
    return Encoder(artifact)


def no_chat(_: list[dict[str, str]]) -> str:
    raise AssertionError


def test_the_three_forms(tmp_path: Path) -> None:
    plain, lines, titled = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "c.json"
    plain.write_text("one\ntwo\n\nthree\n\n \n\n")
    lines.write_text('{"text": "one"}\n\n{"messages": [{"role": "user", "content": "two"}], "title": "T"}\n')
    titled.write_text(json.dumps({"A": "one", "B": {"extract": "two", "title": "x"}, "C": " "}))
    assert read(plain, no_chat) == [Text("one\ntwo", "one\ntwo"), Text("three", "three")]
    assert read(lines, lambda messages: f"<{messages[0]['content']}>") == [Text("one", "one"), Text("T", "<two>")]
    assert read(titled, no_chat) == [Text("A", "one"), Text("B", "two")]


def test_a_line_without_a_title_of_its_own_goes_by_its_question_or_text(tmp_path: Path) -> None:
    lines = tmp_path / "a.jsonl"
    values = [
        {"text": "one", "title": None},
        {"text": "two", "title": ""},
        {"question": "q", "answer": "a", "title": ""},
    ]
    lines.write_text("\n".join(map(json.dumps, values)))
    assert [text.title for text in read(lines, lambda _: "chat")] == ["one", "two", "q"]


def test_a_conversation_goes_by_what_a_task_of_conversations_knows_it_by(tmp_path: Path) -> None:
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
    task = tasks.read(tmp_path / "task.toml")
    assert isinstance(task, tasks.Chat)
    judged = {item.messages[1].content for item in task.items if isinstance(item, tasks.Transcript)}
    trained = {text.body.removeprefix("today: ") for text in found if text.bucket not in (0, 1, 2)}
    assert len(judged) + len(trained) == 30
    assert not judged & trained


def test_no_date_changes_what_is_read(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((artifact.path / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text("{{ strftime_now('%d %b %Y') }}")
    assert Encoder(Moved(artifact, tmp_path)).chat([]) == "01 Jan 2026"


@pytest.mark.parametrize("name", ["a.jsonl", "a.JSONL", "a.ndjson"])
def test_held_out_lines_are_never_read(tmp_path: Path, name: str) -> None:
    lines = tmp_path / name
    items = [{"question": f"q{n}", "answer": "a", "held_out": n == 1} for n in range(3)]
    lines.write_text("\n".join([*map(json.dumps, items), '{"text": "secret", "held_out": true}']))
    found = read(lines, lambda messages: "|".join(f"{turn['role']} {turn['content']}" for turn in messages))
    assert found == [Text("q0", "user q0|assistant a"), Text("q2", "user q2|assistant a")]


def test_a_bucket_is_the_sha1_of_the_title_modulo_ten() -> None:
    assert Text("Alan Turing", "x").bucket == int(hashlib.sha1(b"Alan Turing").hexdigest(), 16) % 10
    buckets = [Text(str(n), "").bucket for n in range(1000)]
    assert all(70 < buckets.count(bucket) < 130 for bucket in range(10))


def test_ids_are_the_shuffled_texts_with_an_end_after_each(text: Path, encoder: Encoder) -> None:
    ids, data = draw(Draw(str(text), range(10), 4, 50), encoder)
    assert ids.shape == (4, 50)
    assert ids.dtype == torch.int64
    flat = ids.flatten().tolist()
    end = flat.index(256)
    first = bytes(text.read_bytes())
    assert encoder.encode(first.decode().split("\n\n")[0])[-1] == 256
    assert flat[: end + 1] in [encoder.encode(paragraph) for paragraph in first.decode().split("\n\n")]
    assert (data.sequences, data.tokens, data.seed) == (4, 50, 0)
    assert data.digest == hashlib.sha256(b"".join(i.to_bytes(8, "little") for i in flat)).hexdigest()


def test_the_same_seed_draws_the_same_ids_and_another_does_not(text: Path, encoder: Encoder) -> None:
    ids, data = draw(Draw(str(text), range(10), 4, 50, seed=1), encoder)
    again, _ = draw(Draw(str(text), range(10), 4, 50, seed=1), encoder)
    other, other_data = draw(Draw(str(text), range(10), 4, 50, seed=2), encoder)
    assert torch.equal(ids, again)
    assert not torch.equal(ids, other)
    assert data.digest != other_data.digest
    assert digest_of(ids) == data.digest


def test_buckets_do_not_share_texts(text: Path, encoder: Encoder) -> None:
    low, _ = draw(Draw(str(text), range(5), 1, 900), encoder)
    high, _ = draw(Draw(str(text), range(5, 10), 1, 900), encoder)
    assert not sentences(low) & sentences(high)


def sentences(ids: torch.Tensor) -> set[tuple[int, ...]]:
    """The texts between ends, the last one, which may be cut, left out."""
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
        ("a.jsonl", '{"body": "x"}', r"a\.jsonl is in no known form \('text'\)"),
        ("a.json", '{"a": "x", "b": "y", "a": "z"}', r"cannot be read as \.json: 'a' stands there twice"),
        ("a.json", '{"a": {"text": null}}', r"in no known form \(NoneType where a text was expected\)"),
        ("a.json", '{"\\ud800": "x"}', r"cannot be read as \.json: .*surrogates not allowed"),
        (
            "a.jsonl",
            '{"text": "x"}\n{"text": null}',
            r"in no known form \(NoneType where a text was.*\), in line 2: see",
        ),
        ("a.jsonl", '{"text": "x"}\n{"text": "', r"cannot be read as \.jsonl: Unterminated string .*, in line 2$"),
        ("a.jsonl", '\n{"text": "\\ud800"}', r"cannot be read as \.jsonl: .*surrogates not allowed, in line 2"),
        ("a.jsonl", "[" * 100_000, r"cannot be read as \.jsonl: maximum recursion depth .*, in line 1"),
        ("a.jsonl", '{"text": ' + "9" * 5000 + "}", r"cannot be read as \.jsonl: Exceeds the limit .*, in line 1"),
        ("a.jsonl", '{"messages": "Hi"}', r"in no known form \(messages are str, not a list\), in line 1"),
        ("a.jsonl", '{"question": "x", "answer": null}', r"in no known form \(NoneType where a text was expected\)"),
        ("a.jsonl", '{"messages": []}', r"holds messages, but the model has no chat template"),
    ],
)
def test_bad_text_is_one_sentence(tmp_path: Path, encoder: Encoder, name: str, content: str, sentence: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(DataError, match=sentence):
        draw(Draw(str(path), range(10), 4, 50), encoder)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
def test_a_mark_of_byte_order_and_carriage_returns_are_no_part_of_a_text(tmp_path: Path, name: str) -> None:
    content = {
        "a.txt": "x y\r\n\r\nz",
        "a.jsonl": '{"text": "x y"}\r\n{"text": "z"}\r\n',
        "a.json": '{"a": "x y", "b": "z"}',
    }
    (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + content[name].encode())
    assert [text.body for text in read(tmp_path / name, no_chat)] == ["x y", "z"]


def test_a_line_of_json_ends_where_json_says_it_does(tmp_path: Path) -> None:
    body = "a\u2028b\u2029c\x85d"
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": body}, ensure_ascii=False) + "\n", encoding="utf-8")
    assert [text.body for text in read(tmp_path / "a.jsonl", no_chat)] == [body]


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"a\.txt is a pipe or a device, which cannot be read twice"):
        read(tmp_path / "a.txt", no_chat)


def test_ids_that_the_model_has_no_row_for_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    definition = json.loads((artifact.path / "tokenizer.json").read_text())
    definition["model"]["vocab"]["Z"] = 300
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    encoder = Encoder(Moved(artifact, tmp_path))
    assert encoder.encode("abc")
    with pytest.raises(ModelRefused, match=r"another model's, gives the id 300, but the model has 257 tokens"):
        encoder.encode("abcZ")
    other = Moved(artifact, tmp_path)
    other.config = {**artifact.config, "eos_token_id": -1}
    with pytest.raises(ModelRefused, match=r"eos_token_id is -1, but the model has 257 tokens"):
        Encoder(other)


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"cannot be read as \.txt"):
        read(tmp_path / "a.txt", no_chat)


@pytest.mark.parametrize("file", ["chat_template.jinja", "tokenizer_config.json"])
def test_messages_are_written_with_the_models_template(artifact: Artifact, tmp_path: Path, file: str) -> None:
    template = (
        "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.role }}: {{ m.content }}{% endgeneration %}"
        "{{ eos_token }}{% if loop.first %}{% break %}{% endif %}{% endfor %}"
    )
    settings = {"eos_token": "<end>", "bos_token": {"content": "<s>", "lstrip": False}} | (
        {"chat_template": template} if file == "tokenizer_config.json" else {}
    )
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "tokenizer.json").write_bytes((artifact.path / "tokenizer.json").read_bytes())
    if file == "chat_template.jinja":
        (tmp_path / file).write_text(template)
    moved = Encoder(Moved(artifact, tmp_path))
    turns = [{"role": "user", "content": "Hi"}]
    served = ChatTemplate(template, {"eos_token": "<end>", "bos_token": "<s>"})
    assert moved.chat(turns, reply=True) == served.render(turns) == "<s>user: Hi<end>"


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for m in messages %}", "chat template fails on the messages in the data: Unexpected end of template"),
        ("{{ raise_exception('no') }}", "chat template fails on the messages in the data: no"),
        ("{{ messages[0].content + 1 }}", "chat template fails on the messages in the data: "),
    ],
)
def test_a_template_that_fails_is_one_sentence(
    artifact: Artifact, tmp_path: Path, template: str, sentence: str
) -> None:
    (tmp_path / "tokenizer.json").write_bytes((artifact.path / "tokenizer.json").read_bytes())
    (tmp_path / "chat_template.jinja").write_text(template)
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}')
    with pytest.raises(DataError, match=sentence):
        read(tmp_path / "a.jsonl", Encoder(Moved(artifact, tmp_path)).chat)


def test_a_damaged_tokenizer_is_one_sentence(artifact: Artifact, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelRefused, match=r"tokenizer\.json cannot be read: Exception: "):
        Encoder(Moved(artifact, tmp_path))
    (tmp_path / "tokenizer.json").write_bytes((artifact.path / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ModelRefused, match=r"tokenizer_config\.json cannot be read as JSON: "):
        Encoder(Moved(artifact, tmp_path)).chat([])


class Moved(Artifact):
    """An artifact with another folder for its tokenizer."""

    def __init__(self, artifact: Artifact, path: Path) -> None:
        self.path = path
        self.config = artifact.config
