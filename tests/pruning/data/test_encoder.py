"""Calibration encodes conversations to the ids that the server would serve."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruning.data.documents import Document, Messages, read
from pruning.data.encoder import Encoder
from pruning.errors import DataError, ModelRefused
from server.artifact.checkpoint.reader import Artifact
from server.errors import ArtifactError
from server.text.tokenizer import Tokenizer

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{% generation %}{{ m.role }}: {{ m.content | trim }}{% endgeneration %}"
    "{{ eos_token }}{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
FORMS: dict[str, Any] = {
    "a string": TEMPLATE,
    "a list": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": TEMPLATE}],
    "an object": {"tool_use": "T", "default": TEMPLATE},
}
TURNS = [{"role": "user", "content": " Hi "}, {"role": "assistant", "content": "Hello"}]


class Moved(Artifact):
    """An artifact with another folder for its tokenizer."""

    def __init__(self, artifact: Artifact, path: Path) -> None:
        self.path = path
        self.config = artifact.config


Move = Callable[..., Encoder]


@pytest.fixture
def move(artifact: Artifact, tmp_path: Path) -> Move:
    """Makes the encoder of a copy of the tokenizer with other settings and, perhaps, a template in its own file."""

    def moved(template: str | None = None, **settings: Any) -> Encoder:
        (tmp_path / "tokenizer.json").write_bytes((artifact.path / "tokenizer.json").read_bytes())
        (tmp_path / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": "<end>", "bos_token": {"content": "<s>", "lstrip": False}, **settings})
        )
        if template is not None:
            (tmp_path / "chat_template.jinja").write_text(template)
        return Encoder(Moved(artifact, tmp_path))

    return moved


@pytest.mark.parametrize("form", FORMS)
def test_a_template_in_each_form_gives_the_ids_that_are_served(move: Move, tmp_path: Path, form: str) -> None:
    encoder = move(chat_template=FORMS[form])
    assert encoder.render(TURNS) == "<s>user: Hi<end>assistant: Hello<end>"
    assert encoder.prompt(TURNS) == Tokenizer.load(tmp_path).chat(TURNS)
    assert encoder.prompt(TURNS) == encoder.ids("<s>user: Hi<end>assistant: Hello<end>assistant: ")
    assert encoder.encode(Document("", "", TURNS)) == [*encoder.ids(encoder.render(TURNS)), 256]


def test_the_file_of_a_template_comes_before_the_settings(move: Move, tmp_path: Path) -> None:
    encoder = move("F{{ messages[0].content }}", chat_template=FORMS["a list"])
    assert encoder.render(TURNS) == "F Hi "
    assert encoder.prompt(TURNS) == Tokenizer.load(tmp_path).chat(TURNS)


@pytest.mark.parametrize("settings", [{}, {"chat_template": [{"name": "rag", "template": "R"}]}, {"chat_template": 1}])
def test_a_model_without_a_template_takes_texts_but_no_conversations(move: Move, settings: dict[str, Any]) -> None:
    encoder = move(**settings)
    assert encoder.encode(Document("", "abc"))
    for call in (encoder.prompt, encoder.render):
        with pytest.raises(DataError, match="cannot be rendered: The model has no chat template"):
            call(TURNS)


@pytest.mark.slow
def test_a_real_model_is_calibrated_on_the_ids_that_it_is_served(base_artifact: Path) -> None:
    encoder, tokenizer = Encoder(Artifact.open(base_artifact)), Tokenizer.load(base_artifact)
    generator = random.Random(0)
    for _ in range(200):
        roles = ["system", *["user", "assistant"] * generator.randint(0, 2), "user"][generator.randint(0, 1) :]
        pieces = [" Why?", "\n\n", "Käse 42", "<|im_end|>", "<|im_start|>system\n", "你好", "'s"]
        turns = [{"role": role, "content": "".join(generator.choices(pieces, k=4))} for role in roles]
        assert encoder.prompt(turns) == tokenizer.chat(turns)
        assert encoder.prompt(turns)[: len(encoder.prompt(turns, reply=False))] == encoder.prompt(turns, reply=False)


def test_a_special_token_is_text_in_a_message_and_special_in_a_text(move: Move, tmp_path: Path) -> None:
    encoder = move(chat_template="{{ messages[0].content }}<end>")
    assert encoder.ids("<end>") == [256]
    assert encoder.prompt([{"role": "user", "content": "<end>"}]) == [*Tokenizer.load(tmp_path).encode("<end>"), 256]


def test_messages_may_hold_more_than_strings(move: Move, tmp_path: Path) -> None:
    encoder = move("{% for m in messages %}{{ m.content or m.calls | tojson }}{{ m.weight }}{% endfor %}")
    turns: Messages = [
        {"role": "assistant", "content": None, "calls": [{"name": "a<end>", "arguments": {"x": 1}}], "weight": 1},
        {"role": "user", "content": [{"type": "text", "text": "Hi"}], "weight": 0},
    ]
    text = "[{\"name\": \"a<end>\", \"arguments\": {\"x\": 1}}]1[{'type': 'text', 'text': 'Hi'}]0"
    assert encoder.render(turns) == text
    assert encoder.prompt(turns) == Tokenizer.load(tmp_path).encode(text)  # `<end>` as five letters
    odd: Any
    for odd in ("Hi", None, 0):
        with pytest.raises(DataError, match=r"a message is .*, not an object with a role and content"):
            encoder.render([odd])


def test_no_date_changes_what_is_read(move: Move) -> None:
    assert move("{{ strftime_now('%d %b %Y') }}").render([]) == "01 Jan 2026"


def test_ids_without_a_row_in_the_embeddings_are_refused(artifact: Artifact, tmp_path: Path) -> None:
    definition = json.loads((artifact.path / "tokenizer.json").read_text())
    definition["model"]["vocab"]["Z"] = 300
    (tmp_path / "tokenizer.json").write_text(json.dumps(definition))
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    encoder = Encoder(Moved(artifact, tmp_path))
    assert encoder.ids("abc")
    with pytest.raises(ModelRefused, match=r"another model's, gives the id 300, but the model has 257 tokens"):
        encoder.ids("abcZ")
    with pytest.raises(ModelRefused, match=r"another model's, gives the id 300, but the model has 257 tokens"):
        encoder.prompt([{"role": "user", "content": "Z"}])
    other = Moved(artifact, tmp_path)
    other.config = {**artifact.config, "eos_token_id": -1}
    with pytest.raises(ModelRefused, match=r"eos_token_id is -1, but the model has 257 tokens"):
        Encoder(other)


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for m in messages %}", "cannot be rendered: The chat template is not valid: Unexpected end of template"),
        ("{{ raise_exception('no') }}", "cannot be rendered: The model's chat template refuses the messages: no"),
        ("{{ messages[0].content + 1 }}", "cannot be rendered: The chat template failed: TypeError: "),
    ],
)
def test_a_template_that_fails_is_one_sentence(move: Move, tmp_path: Path, template: str, sentence: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"messages": [{"role": "user", "content": "Hi"}]}')
    encoder = move(template)
    assert encoder.ids("texts need no template")
    with pytest.raises(DataError, match=sentence):
        read(tmp_path / "a.jsonl", encoder.render)
    with pytest.raises(DataError, match=sentence):
        encoder.prompt(TURNS)


def test_a_damaged_tokenizer_is_one_sentence(artifact: Artifact, move: Move, tmp_path: Path) -> None:
    move()
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer_config\.json cannot be read as a JSON object: "):
        Encoder(Moved(artifact, tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"tokenizer\.json is not a tokenizer: "):
        Encoder(Moved(artifact, tmp_path))
