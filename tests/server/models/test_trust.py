"""What a server refuses to start with: models that nobody signed, that were exchanged, or that failed their gate."""

from pathlib import Path

import pytest

from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.lineage import GateResult
from server.commands.__main__ import main
from server.commands.serve import prepare
from server.config import load
from server.errors import ArtifactError, ConfigError
from server.metering.audit.log import AuditLog
from server.models import loading
from server.storage.digests import FileDigests
from tests.server.artifact.signing.artifacts import make
from tests.server.metering.test_audit import read
from tests.server.models.test_follow import PASSED, House, house
from tests.support.harness import LINEAGE

__all__ = ["house"]
pytestmark = pytest.mark.slow


def config(house: House, text: str) -> Path:
    path = house.folder / "server.toml"
    skill = house.folder / "skill.toml"
    skill.write_text('name = "help"')
    path.write_text(f'{text}\nskills = "{skill}"\nledger = "{house.folder}/usage.sqlite3"\nregistry = "{house.url}"\n')
    return path


def test_a_directory_exchanged_while_it_is_read_is_refused(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    make(house.folder / "unsigned", 3.0, gates=PASSED)
    opened = loading.open_model

    def exchanging(path: Path, digests: FileDigests, template: Path | None) -> object:
        path.rename(house.folder / "signed")
        (house.folder / "unsigned").rename(path)
        return opened(path, digests, template)

    monkeypatch.setattr(loading, "open_model", exchanging)
    made = load(config(house, f'model = "{house.folder}/model-1"\nsigners = "{house.signers}"'))
    with pytest.raises(ArtifactError, match=r"model-1 was exchanged while it was loaded"):
        loading.Loader(made).open(made.model)


def test_a_model_of_the_registry_is_served_signed_or_not_at_all(house: House) -> None:
    with pytest.raises(ConfigError, match="a model of the registry must be signed: name the file of `signers`"):
        load(config(house, 'model = "registry:tiny@production"'))


@pytest.mark.parametrize(
    ("model", "tampered", "sentence"),
    [
        ("registry:tiny@production", "config.json", "config.json was changed"),
        ("registry:other@production", "", "there is no model 'other' here; there are tiny"),
        ("registry:tiny@latest", "", "'tiny@latest' is not a version"),
        ("{folder}/model-1", "config.json", "config.json was changed or swapped after alice signed"),
    ],
)
def test_what_cannot_be_trusted_is_refused_at_start(
    house: House, model: str, tampered: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if tampered:
        (house.folder / "model-1" / tampered).write_text("{}")
    named = model.format(folder=house.folder)
    path = config(house, f'model = "{named}"\nsigners = "{house.signers}"')
    assert main(["serve", str(path)]) == 2
    assert sentence in capsys.readouterr().err
    ledger = house.folder / "usage.sqlite3"
    assert not ledger.exists()
    AuditLog(ledger).close()  # of an earlier start
    assert main(["serve", str(path)]) == 2
    [entry] = read(str(ledger))
    assert (entry.who, entry.action, entry.object) == ("server", "model.refused", named)
    assert sentence in entry.result


def test_a_signed_directory_that_failed_its_gate_is_served_only_if_that_is_allowed(
    house: House, caplog: pytest.LogCaptureFixture
) -> None:
    path = house.folder / "failed"
    make(path, 3.0, gates=(GateResult("faq", False), *PASSED))
    assert main(["sign", str(path), "--key", str(house.key)]) == 0
    made = load(config(house, f'model = "{path}"\nsigners = "{house.signers}"'))
    with pytest.raises(ArtifactError, match=r"failed its gate faq, says its own record: .* --allow-failed-gate"):
        loading.Loader(made).open(made.model)
    opened = loading.Loader(made, allow_failed_gate=True).open(made.model)
    assert [(one.subject, one.value) for one in opened.choices] == [("gates", "failed its gate faq")]
    assert "failed its gate faq and is served nevertheless: --allow-failed-gate" in caplog.text


def test_prepare_opens_what_the_registry_names(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but the weights, which are fakes."""
    monkeypatch.setattr(loading, "load_engine", lambda *_: (house.load(house.folder / "model-1", "tiny@1").engine, ()))
    made = prepare(load(config(house, f'model = "registry:tiny@production"\nsigners = "{house.signers}"')))
    made.ledger.close()
    [model] = made.rollout.models
    assert model.name == "tiny@1"
    assert model.lineage == record.read(house.folder / "model-1")
    assert model.lineage != LINEAGE
    [successors] = made.rollout.successors.values()
    assert successors.next() is None
