"""Promotions while replies are running: the real server, a real registry, and scripted models."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Never
from urllib.parse import urlsplit

import msgspec
import pytest

from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.lineage import GateResult
from server.artifact.registry import history
from server.artifact.registry.seen import LastSeen
from server.artifact.registry.store import Gate, Move, Registry
from server.artifact.signing import keys
from server.artifact.signing.keys import read_private
from server.commands.__main__ import main
from server.engine.engine import Engine
from server.errors import ArtifactError
from server.models.follow import Follower, SignedReference
from server.models.rollout import CurrentModel, Model, Rollout
from server.text.tokenizer import Tokenizer
from tests.server.artifact.signing.artifacts import make
from tests.server.metering.test_audit import read
from tests.support.chat_client import STREAM, everything, get, received, send
from tests.support.fakes import ScriptRunner
from tests.support.harness import KEY, Served, ledger_of, parts, says, served, until

pytestmark = pytest.mark.slow

PASSED = (GateResult("faq", True),)


class House:
    """A registry with two signed versions, the first in production, and what each says."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, str(folder / "registry.sqlite3")
        self.key, self.signers = folder / "alice.pem", folder / "signers"
        self.signers.write_text(keys.Signer("alice", keys.create(self.key, elliptic=False)).line)
        self.engines: dict[str, Engine] = {}
        self.runners: dict[str, ScriptRunner] = {}
        for number in (1, 2):
            self.add(folder / f"model-{number}", number)
        self("promote", "tiny@1")

    def __call__(self, *words: str) -> None:
        if words[0] in ("promote", "rollback"):
            words = (*words, "--key", str(self.key))
        assert main(["registry", "--registry", self.url, *words]) == 0

    def add(self, path: Path, number: int) -> None:
        make(path, float(number), gates=PASSED)
        assert main(["sign", str(path), "--key", str(self.key)]) == 0
        self("add", "tiny", str(path))

    def load(self, path: Path, name: str) -> Model:
        """Replaces the real loader: each version replies its own number."""
        words = Tokenizer.load(path)
        script = [*words.encode(name[-1] * 40), next(iter(words.stop_ids))]
        runner = self.runners[name] = ScriptRunner(script, words.vocabulary)
        engine = self.engines[name] = Engine(runner, slots=2, context=512)
        return Model(name, engine, words, record.read(path))

    def reference(self) -> SignedReference:
        """Of what is in production."""
        seen = LastSeen(self.folder / "registry-seen.json")
        return SignedReference(self.url, "tiny@production", self.signers, seen)

    @contextmanager
    def served(self) -> Iterator[Served]:
        follower = Follower.open(self.reference(), self.load)
        version = follower.version
        made = parts(self.folder, says(self.folder, "unused"), registry_seconds=0.05)
        model = self.load(version.path, version.name)
        rollout = Rollout({"registry:tiny@production": CurrentModel(model, follower)}, "registry:tiny@production")
        made = msgspec.structs.replace(made, rollout=rollout)
        with served(made, ScriptRunner([0], 258)) as server:
            yield server


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path)


def unloadable(path: Path, name: str) -> Model:
    raise ZeroDivisionError(f"{path} {name}")


def follower(server: Served) -> Follower[Model]:
    """The follower of its only model."""
    [found] = server.parts.rollout.successors.values()
    assert isinstance(found, Follower)
    return found


def artifact(server: Served) -> str:
    """The artifact that /v1/models names."""
    raw = everything(ask(server.url, "/v1/models/help"))
    return str(json.loads(raw.split(b"\r\n\r\n", 1)[1])["artifact"])


def ask(url: str, path: str) -> socket.socket:
    address = urlsplit(url)
    connection = socket.create_connection((str(address.hostname), address.port or 0), timeout=120)
    head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n\r\n"
    connection.sendall(head.encode())
    return connection


def test_a_stream_running_during_a_promotion_is_finished_by_the_old_version(house: House) -> None:
    with house.served() as server:
        house.runners["tiny@1"].hold(2)
        running = send(server.url, STREAM)
        until(lambda: house.engines["tiny@1"].running == 1)
        house("promote", "tiny@2", "--signers", str(house.signers))
        until(lambda: artifact(server) == "tiny@2")
        assert house.engines["tiny@1"].running == 1
        assert house.engines["tiny@1"].failure is None
        house.runners["tiny@1"].release()
        begun_after = send(server.url, STREAM)
        text, events = received(running)
        assert text == "1" * 40
        assert events[-1] == "[DONE]"
        assert received(begun_after)[0] == "2" * 40
        until(lambda: house.engines["tiny@1"].failure == "The engine was stopped.")
        until(lambda: not house.engines["tiny@1"]._thread.is_alive())
        until(lambda: len([row for row in ledger_of(server) if row["state"] == "final"]) == 2)
        assert [row["model"] for row in ledger_of(server)] == ["tiny@1", "tiny@2"]
        scrape = everything(ask(server.admin, "/metrics")).decode()
        for number in (1, 2):
            assert f'secateur_tokens_total{{model="tiny@{number}",skill="help",type="output"}} 41.0' in scrape
        assert 'secateur_model_info{base="tiny"' in scrape
        with Registry.open(house.url) as registry:
            assert registry.bindings("tiny")["help"][0] == 2
        house("rollback", "tiny")
        until(lambda: artifact(server) == "tiny@1")
        assert received(send(server.url, STREAM))[0] == "1" * 40
    assert not any(thread.name == "engine" for thread in threading.enumerate())


def narrow(load: Callable[[Path, str], Model], path: Path, name: str) -> Model:
    """A model whose context no prompt of the skill fits."""
    model = load(path, name)
    model.engine.context = 10
    return model


def speechless(load: Callable[[Path, str], Model], path: Path, name: str) -> Model:
    """A model whose template fails on the skill's turns, and not by refusing them."""
    model = load(path, name)
    model.tokenizer.chat = partial(fail, "The chat template failed: no filter named 'indent'")  # type: ignore[method-assign]
    return model


def fail(sentence: str, *_: object) -> Never:
    raise ArtifactError(sentence)


@pytest.mark.parametrize("what", ["changed", "unsigned", "unloadable", "gone", "narrow", "speechless"])
def test_an_untrusted_or_unloadable_version_is_refused_and_the_old_one_stays(
    house: House, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = house.folder / "model-2"
    with house.served() as server:
        if what == "unloadable":
            follower(server)._load = lambda *_: 1 / 0  # type: ignore[assignment]
        if what == "narrow":
            follower(server)._load = partial(narrow, follower(server)._load)
        if what == "speechless":
            follower(server)._load = partial(speechless, follower(server)._load)
        if what == "changed":
            (path / "config.json").write_text("{}")
        if what == "unsigned":
            (path / "model.sig").unlink()
        if what == "gone":
            path.rename(house.folder / "elsewhere")
        with Registry.open(house.url) as registry:
            move = Move(0, "promote", 2, 1, "it was whole when it was promoted", "")
            version, key = registry.resolve("tiny@2"), read_private(house.key)
            registry.move("tiny", history.next_move(registry.moves("tiny"), version, move, key))
        until(lambda: "tiny@2 cannot be served" in caplog.text)
        assert artifact(server) == "tiny@1"
        assert received(send(server.url, STREAM))[0] == "1" * 40
        assert get(server.admin, "/readyz")[0] == 200
        refusals = [one for one in read(server.parts.config.ledger) if one.action == "model.refused"]
    reasons = {
        "changed": "config.json was",
        "unsigned": "not signed",
        "unloadable": "division",
        "narrow": "begins every prompt with",
        "speechless": "does not suit the model 'tiny@2': The chat template failed",
        "gone": "is not an artifact",
        "exchanged": "model-2 was exchanged while tiny@2 was loaded",
    }
    assert caplog.text.count("cannot be served") == 1
    assert reasons[what] in caplog.text
    [refusal] = refusals
    assert (refusal.who, refusal.object) == ("server", "tiny@2")
    assert reasons[what] in refusal.result


def test_a_removed_signer_is_refused_at_once(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with house.served() as server:
        house.signers.write_text(keys.Signer("bob", keys.create(house.folder / "bob.pem", elliptic=False)).line)
        house("promote", "tiny@2")
        until(lambda: "tiny@2 cannot be served" in caplog.text)
        assert "is signed with the key" in caplog.text
        assert artifact(server) == "tiny@1"


def test_a_refused_version_is_never_recorded_as_answering(house: House) -> None:
    found = Follower.open(house.reference(), unloadable)
    first = found.version
    house("promote", "tiny@2", "--signers", str(house.signers))
    assert found.next() is None
    found.began(["help"], first.name)
    with Registry.open(house.url) as registry:
        assert registry.bindings("tiny")["help"][0] == 1


def test_no_error_ends_the_following(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with house.served() as server:
        own = follower(server)
        original, calls = own.next, []

        def odd() -> Model | None:
            calls.append(1)
            if len(calls) == 1:
                raise RuntimeError("odd")
            return original()

        own.next = odd  # type: ignore[method-assign]
        until(lambda: "Following failed: " in caplog.text)
        house("promote", "tiny@2", "--signers", str(house.signers))
        until(lambda: artifact(server) == "tiny@2")


def test_a_registry_that_cannot_be_reached_changes_nothing(house: House, caplog: pytest.LogCaptureFixture) -> None:
    with house.served() as server:
        file = Path(house.url)
        file.rename(house.folder / "away")
        file.write_text("no database at all" * 99)
        until(lambda: "not a database" in caplog.text)
        assert received(send(server.url, STREAM))[0] == "1" * 40
        (house.folder / "away").replace(file)
        house("promote", "tiny@2")
        until(lambda: artifact(server) == "tiny@2")


def test_a_version_that_failed_to_load_is_tried_again_when_it_is_promoted_anew(house: House) -> None:
    found = Follower.open(house.reference(), unloadable)
    house("promote", "tiny@2", "--signers", str(house.signers))
    assert found.next() is None
    house("rollback", "tiny")
    assert found.next() is None
    house("promote", "tiny@2", "--signers", str(house.signers))
    found._load = house.load
    model = found.next()
    assert model is not None
    assert model.name == "tiny@2"


def test_a_promotion_of_a_failed_gate_without_signers_is_refused_by_the_server(house: House) -> None:
    """The promoter's own key is not enough: results and overrides need theirs."""
    found = Follower.open(house.reference(), house.load)
    path = house.folder / "unmeasured"
    make(path, 3.0)
    assert main(["sign", str(path), "--key", str(house.key)]) == 0
    house("add", "tiny", str(path))
    with Registry.open(house.url) as registry:
        gate = Gate(GateResult("faq", True), "0" * 64)
        registry.add("tiny", path, record.read(path), [gate])
    house("promote", "tiny@3")
    assert found.next() is None


def test_requests_do_not_wait_while_a_version_is_loaded(house: House) -> None:
    with house.served() as server:
        loading, go_on = threading.Event(), threading.Event()

        def slow(path: Path, name: str) -> Model:
            loading.set()
            assert go_on.wait(120)
            return house.load(path, name)

        follower(server)._load = slow
        house("promote", "tiny@2")
        assert loading.wait(120)
        assert received(send(server.url, STREAM))[0] == "1" * 40
        go_on.set()
        until(lambda: artifact(server) == "tiny@2")
