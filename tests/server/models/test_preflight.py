"""`serve --check`: whether models can be served, without their weights."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from server.config import Config
from server.errors import ArtifactError, ConfigError
from server.models.preflight import check_models
from server.skills.skill import Skill

TEMPLATE = "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"


@pytest.fixture
def model(tmp_path: Path, base_artifact: Path) -> Path:
    """The base artifact, its template removed, which the record still names."""
    folder = tmp_path / "model"
    shutil.copytree(base_artifact, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "chat_template": None}))
    return folder


@pytest.fixture
def config(tmp_path: Path, model: Path) -> Config:
    return Config(model=str(model), skills=tmp_path, ledger=str(tmp_path / "ledger.sqlite3"))


SKILL = Skill(name="help", system="Answer briefly.")


def test_a_model_without_a_template_is_refused_and_one_in_the_settings_is_used(config: Config, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="has no chat template"):
        check_models(config, [SKILL])
    template = tmp_path / "chat.jinja"
    template.write_text(TEMPLATE)
    check_models(replace(config, chat_template=template), [SKILL])
    template.write_text("{% for %}")
    with pytest.raises(ArtifactError, match="template is not valid"):
        check_models(replace(config, chat_template=template), [SKILL])


def test_a_skill_that_fills_the_context_is_refused(config: Config, base_artifact: Path) -> None:
    with pytest.raises(ConfigError, match="no reply has room"):
        check_models(replace(config, model=str(base_artifact), context=8), [SKILL])


@pytest.mark.parametrize(("own", "elsewhere"), [(8, 2048), (2048, 8)])
def test_a_remote_models_context_is_its_files(
    config: Config, base_artifact: Path, tmp_path: Path, own: int, elsewhere: int
) -> None:
    file = tmp_path / "big.toml"
    file.write_text(
        f'engine = "remote"\nartifact = {json.dumps(str(base_artifact))}\nbackends = ["https://one.example:8000"]\n'
        f'served_as = "mine"\ncontext = {elsewhere}\n'
    )
    served = replace(config, model=str(file), context=own)
    if elsewhere > own:
        check_models(served, [SKILL])
    else:
        with pytest.raises(ConfigError, match=r"`context` of .*big\.toml: no reply has room"):
            check_models(served, [SKILL])


@pytest.mark.parametrize(
    ("file", "content", "what"),
    [
        ("config.json", b'{"model_type": "lama"}', "model_type is 'lama'"),
        ("config.json", b'{"model_type": "llama", "auto_map": {}}', "auto_map"),
        ("config.json", b"{", "cannot be read"),
        ("lineage.json", b"{}", "is not a lineage record"),
        ("model.safetensors", b"\x08\0\0\0\0\0\0\0notjson!", "cannot be read"),
    ],
)
def test_a_damaged_model_is_refused(config: Config, model: Path, file: str, content: bytes, what: str) -> None:
    (model / file).write_bytes(content)
    with pytest.raises(ArtifactError, match=what):
        check_models(config, [SKILL])


def test_a_missing_file_is_named(config: Config, model: Path) -> None:
    (model / "model.safetensors").unlink()
    with pytest.raises(ArtifactError, match=r"model\.safetensors is missing"):
        check_models(config, [SKILL])


def test_torch_is_not_imported(base_artifact: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from server.models.preflight import check_model; "
        f"check_model(Path({str(base_artifact)!r})); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_skill_whose_knowledge_is_none_is_refused(
    config: Config, base_artifact: Path, caplog: pytest.LogCaptureFixture
) -> None:
    served = replace(config, model=str(base_artifact))
    with pytest.raises(ArtifactError, match="is no knowledge"):
        check_models(served, [replace(SKILL, knowledge=str(base_artifact))])
    check_models(served, [replace(SKILL, knowledge="not/built/yet")])
    assert "not/built/yet, the knowledge of the skill 'help', is not there (yet)" in caplog.text
