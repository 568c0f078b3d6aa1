"""A chat template given to a base: recorded, written into the artifact, and used by every reader alike."""

import hashlib
import json
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from pruning.data.encoder import Encoder
from pruning.errors import ModelRefused
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import find_base
from server.text.tokenizer import Tokenizer
from tests.pruning import tiny

TEMPLATE = "{% for message in messages %}<{{ message.role }}> {{ message.content }}{{ eos_token }}{% endfor %}"
TURNS = [{"role": "user", "content": "Hello"}]


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "given.jinja"
    path.write_text(TEMPLATE)
    return path


def test_it_is_part_of_the_base_for_every_reader(tmp_path: Path, template: Path) -> None:
    model, cache = tiny.save(tmp_path / "model"), tmp_path / "cache"
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"chat_template": "old"}))
    made, own = base_artifact(str(model), cache, str(template)), base_artifact(str(model), cache)
    assert made.path != own.path
    assert made.lineage.base.digest != own.lineage.base.digest
    assert made.lineage.base.note.endswith("chat template of given.jinja")
    assert made.lineage.files["chat_template.jinja"] == hashlib.sha256(TEMPLATE.encode()).hexdigest()
    assert find_base(cache, made.lineage.base.digest).path == made.path
    expected = AutoTokenizer.from_pretrained(made.path).apply_chat_template(TURNS, return_dict=False)
    assert Encoder(made).prompt(TURNS, reply=False) == expected
    assert Tokenizer.load(made.path).chat(TURNS, reply=False) == expected
    assert "old" not in (made.path / "tokenizer_config.json").read_text()
    template.write_text(TEMPLATE.upper())
    with pytest.raises(ModelRefused, match=r"given\.jinja cannot be used"):
        base_artifact(str(model), cache, str(template))
    assert len(list(cache.glob("*/lineage.json"))) == 2


def test_the_digest_is_that_of_a_directory_with_the_file_in_it(tmp_path: Path, template: Path) -> None:
    model, cache = tiny.save(tmp_path / "model"), tmp_path / "cache"
    given = base_artifact(str(model), cache, str(template)).lineage.base.digest
    (model / "chat_template.jinja").write_text(TEMPLATE)
    assert base_artifact(str(model), cache).lineage.base.digest == given
