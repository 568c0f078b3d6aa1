"""The export against a real MLflow store, on SQLite, read back by MLflow's own client."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from server.artifact.checkpoint import lineage as record
from server.artifact.registry.store import Registry
from server.commands.__main__ import main
from tests.server.artifact.registry.shop import FAILED, PASSED, Shop

pytestmark = pytest.mark.slow


@pytest.fixture
def _quiet() -> Iterator[None]:
    """MLflow and what it uses warn of themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.usefixtures("_quiet")
def test_mlflow_knows_the_versions_their_lineage_and_the_aliases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlflow import MlflowClient

    shop = Shop(tmp_path, str(tmp_path / "registry.sqlite3"))
    first, second = shop.added(1.0, PASSED), shop.added(2.0, FAILED)
    assert shop("promote", "tiny@1") == 0
    store = f"sqlite:///{tmp_path}/mlflow.sqlite3"
    assert shop("export", "tiny", "--mlflow", store) == 0
    assert f"tiny: 2 versions are in {store}" in capsys.readouterr().out
    client = MlflowClient(tracking_uri=store, registry_uri=store)
    production = client.get_model_version_by_alias("tiny", "production")
    assert production.source == str(first)
    assert production.tags["secateur.address"] == record.address(record.read(first))
    assert production.tags["prune.techniques"] == "wanda"
    assert production.tags["prune.perplexity.pruned"] == "17.0"
    assert production.tags["prune.gate.faq"] == "passed"
    candidate = client.get_model_version_by_alias("tiny", "candidate")
    assert (candidate.source, candidate.tags["prune.gate.faq"]) == (str(second), "failed")
    assert candidate.tags["prune.gate.faq.signature"] == "signature not checked: no file of signers was named"

    assert shop("approve", "tiny@2", "--key", shop.key, "--reason", "demo", "--override") == 0
    assert shop("promote", "tiny@2", "--signers", shop.signers) == 0
    (second / "model.sig").unlink()
    assert shop("export", "tiny", "--mlflow", store, "--signers", shop.signers) == 0
    assert len(client.search_model_versions("name = 'tiny'")) == 2
    production = client.get_model_version_by_alias("tiny", "production")
    assert production.source == str(second)
    assert production.tags["prune.override.1"].endswith("demo")
    assert production.tags["prune.gate.faq.signature"].startswith(f"does not count: {second}/model.sig is missing")
    assert client.get_model_version("tiny", "1").tags["prune.gate.faq.signature"] == "signed by alice"


@pytest.mark.usefixtures("_quiet")
def test_what_cannot_be_exported_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    url = str(tmp_path / "registry.sqlite3")
    shop = Shop(tmp_path, url)
    with Registry.open(url, create=True):
        pass
    assert main(["registry", "--registry", url, "export", "tiny", "--mlflow", f"sqlite:///{tmp_path}/m"]) == 2
    assert "there is no model 'tiny' here; there are none" in capsys.readouterr().err
    shop.added(1.0)
    assert shop("export", "tiny", "--mlflow", "http://127.0.0.1:1") == 2
    error = capsys.readouterr().err
    assert "MLflow refuses" in error
    assert "Traceback" not in error
    assert error.splitlines()[-1].startswith("secateur registry: ")
