"""Tiny artifacts with a chat template, and tasks for them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from pruning.evaluation.tasks import task as tasks
from pruning.evaluation.tasks.reading import read_task
from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.reader import Artifact
from tests.pruning import tiny

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """A random Llama of two blocks with a chat template."""
    folder = tmp_path_factory.mktemp("evaluated")
    source = tiny.save(folder / "tiny", max_position_embeddings=256)
    settings = {"eos_token": "<end>", "chat_template": TEMPLATE}
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    return base_artifact(str(source), folder / "base")


@pytest.fixture
def task(tmp_path: Path) -> Callable[..., tasks.Task]:
    """Reads a task from TOML, with `items` in a JSON Lines file beside it."""

    def read(text: str, *items: object) -> tasks.Task:
        if items:
            (tmp_path / "items.jsonl").write_text("\n".join(json.dumps(item) for item in items))
            text += '\nitems = "items.jsonl"\n'
        (tmp_path / "task.toml").write_text(text)
        return read_task(tmp_path / "task.toml")

    return read
