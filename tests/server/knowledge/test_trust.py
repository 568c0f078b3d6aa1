"""A knowledge signed, registered, promoted, followed and rolled back by the commands that models have."""

import asyncio
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.reader import Artifact
from server.commands.__main__ import main
from server.config import Config
from server.errors import ArtifactError, ConfigError, SignatureError
from server.metering.audit.chain import Event
from server.models.knowledge import KnowledgeLoader
from server.models.reload import Reloader
from tests.server.artifact.registry.shop import Shop
from tests.server.artifact.signing.artifacts import make
from tests.server.knowledge.conftest import Builder


@pytest.fixture
def shop(tmp_path: Path, pages: Path) -> Shop:
    return Shop(tmp_path, str(tmp_path / "registry.sqlite3"))


def config(shop: Shop, *, signers: bool = True) -> Config:
    return Config(
        model="unused",
        registry=shop.url,
        signers=shop.signers if signers else None,
        ledger=str(shop.folder / "usage.sqlite3"),
        skills=shop.folder,
    )


def version(shop: Shop, built: Builder, hours: str) -> Path:
    """A signed artifact whose page has these hours, in the registry and overridden."""
    (shop.folder / "pages" / "opening.md").write_text(f"# Opening hours\n\nThe shop is open from {hours}.\n")
    path = built(output=f"knowledge-{hours}").output
    assert main(["sign", str(path), "--key", str(shop.key)]) == 0
    assert shop("add", "handbook", path) == 0
    reason = ("--override", "--reason", "read by hand")
    assert shop("approve", "handbook@candidate", "--key", shop.key, *reason) == 0
    return path


def test_from_the_build_to_production_and_back_while_it_is_followed(
    shop: Shop, built: Builder, capsys: pytest.CaptureFixture[str]
) -> None:
    version(shop, built, "nine")
    assert shop("promote", "handbook@1", "--signers", shop.signers) == 0
    followed = KnowledgeLoader(config(shop)).open("registry:handbook@production")
    assert followed.name == "handbook@1"
    assert not followed.refresh()
    version(shop, built, "ten")
    assert shop("promote", "handbook@2", "--signers", shop.signers) == 0
    before = followed.knowledge
    assert followed.refresh()
    assert followed.name == "handbook@2"
    assert "from ten" in followed.knowledge.search("opening hours")[0].passage.text
    assert "from nine" in before.search("opening hours")[0].passage.text
    assert shop("rollback", "handbook", "--signers", shop.signers) == 0
    assert followed.refresh()
    assert followed.name == "handbook@1"
    assert shop("show", "handbook@1") == 0
    assert shop("diff", "handbook@1", "handbook@2") == 0
    assert shop("verify", "handbook@1", "--signers", shop.signers) == 0
    assert "handbook@1 is whole; signed by alice" in capsys.readouterr().out


def test_a_refused_version_is_recorded_once_and_the_old_one_stays(shop: Shop, built: Builder) -> None:
    version(shop, built, "nine")
    assert shop("promote", "handbook@1", "--signers", shop.signers) == 0
    followed, events = KnowledgeLoader(config(shop)).open("registry:handbook@production"), list[Event]()
    path = version(shop, built, "ten")
    assert shop("promote", "handbook@2", "--signers", shop.signers) == 0
    (path / "model.sig").unlink()
    shelf = SimpleNamespace(current={"registry:handbook@production": followed})
    reloader: Any = SimpleNamespace(_shelf=shelf, _record=events.append)
    for _ in range(2):
        asyncio.run(Reloader._follow_knowledge(reloader))
    assert followed.name == "handbook@1"
    assert [(event.action, event.object) for event in events] == [("model.refused", "handbook@2")]
    assert "is not signed" in events[0].result


def test_a_changed_passage_is_found_out(shop: Shop, built: Builder, capsys: pytest.CaptureFixture[str]) -> None:
    path = version(shop, built, "nine")
    index = path / "index.sqlite3"
    index.write_bytes(index.read_bytes().replace(b"from nine", b"from four"))
    for command in (["verify", str(path), "--signers", str(shop.signers)], ["sign", str(path), "--key", str(shop.key)]):
        assert main(command) == 2
        assert "index.sqlite3 was changed" in capsys.readouterr().err
    with pytest.raises(SignatureError, match=r"index\.sqlite3 was changed"):
        KnowledgeLoader(config(shop)).open(str(path))


def test_an_unsigned_directory_is_served_only_where_no_signature_is_wanted(shop: Shop, built: Builder) -> None:
    path = built().output
    with pytest.raises(SignatureError, match="the artifact is not signed"):
        KnowledgeLoader(config(shop)).open(str(path))
    assert KnowledgeLoader(config(shop, signers=False)).open(str(path)).name == "knowledge"
    with pytest.raises(ConfigError, match="must be signed"):
        KnowledgeLoader(config(shop, signers=False)).open("registry:handbook@production")


def test_a_name_is_a_models_or_a_knowledges(shop: Shop, built: Builder, capsys: pytest.CaptureFixture[str]) -> None:
    shop.added(1.0)
    assert shop("add", "tiny", built().output) == 2
    assert "tiny is a model here" in capsys.readouterr().err
    version(shop, built, "nine")
    make(shop.folder / "model", 2.0)
    assert shop("add", "handbook", shop.folder / "model") == 2
    assert "handbook is a knowledge here" in capsys.readouterr().err


def test_no_knowledge_is_loaded_as_a_model_and_no_model_as_a_knowledge(shop: Shop, built: Builder) -> None:
    with pytest.raises(ArtifactError, match="is a knowledge and no model"):
        Artifact.open(built().output)
    with pytest.raises(ArtifactError, match="is a model and no knowledge"):
        KnowledgeLoader(config(shop, signers=False)).open(str(shop.artifact(1.0)))


def test_lineage_draws_what_a_knowledge_was_built_from(
    built: Builder, pages: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = built().output
    assert main(["lineage", str(path)]) == 0
    drawn = capsys.readouterr().out
    assert "shop, 2 documents" in drawn
    assert "verified: 2 files have their digests" in drawn


def test_results_belong_to_the_manifest(shop: Shop, built: Builder, capsys: pytest.CaptureFixture[str]) -> None:
    path = built().output
    assert main(["sign", str(path), "--key", str(shop.key)]) == 0
    gate = {"gate": "hit_at_3", "limit": 1.0, "measured": {"value": 0.1, "high": 0.2}, "passed": True}
    results = shop.folder / "results.json"
    results.write_text(json.dumps({"task": "faq", "weights": record.read(path).subject, "gates": [gate]}))
    assert shop("add", "handbook", path, "--results", results, "--key", shop.key) == 0
    assert shop("promote", "handbook@1") == 0
    assert shop("show", "handbook@1") == 0
    assert "faq: passed" in capsys.readouterr().out
