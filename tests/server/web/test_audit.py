"""What a running server records: admin requests, keys, reloads, its start and stop; and never a key or a prompt."""

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace

from server.metering.audit import chain
from server.metering.audit.chain import Entry, faults
from server.metering.ledger.records import LedgerUnavailable
from server.skills import api_keys
from server.storage.database import StorageError
from server.storage.postgres import without_password
from server.web import audit
from server.web.audit import digest
from tests.server.metering.test_audit import read
from tests.server.models.test_follow import House, house
from tests.server.models.test_reload import write
from tests.server.web.access.test_guard import key_of, status
from tests.server.web.test_budgets import ASK, ask
from tests.server.web.test_listeners import call
from tests.support.harness import KEY, Serve, Served, parts, says, served, until

__all__ = ["house"]


def found(server: Served, *actions: str) -> list[Entry]:
    """The entries of these actions, oldest first, once the chain has been checked."""
    every = read(server.parts.config.ledger)
    assert not list(faults(every))
    return [entry for entry in every if not actions or entry.action in actions]


def test_admin_requests_are_recorded_with_who_what_when_and_from_where(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "admin.json"
    key = key_of(file, capsys, "--admin", "all")
    [kept] = api_keys.read(file).keys
    server = serve("ok", admin_keys=str(file))
    before = time.strftime("%Y-%m-%dT%H:%M", time.gmtime())
    assert status(server, "/admin/usage?by=skill,day&since=2026-01-01", key) == 200
    assert status(server, "/admin/registry", key) == 200
    assert status(server, "/admin/usage?secret=sk-1", key) == 400
    assert status(server, "/admin/reload", key) == 400
    entries = found(server, "usage.export", "registry.view", "reload")
    assert [(entry.action, entry.object, entry.result) for entry in entries] == [
        ("usage.export", "GET /admin/usage?by=skill,day&since=2026-01-01", "200"),
        ("registry.view", "GET /admin/registry", "200"),
        ("usage.export", "GET /admin/usage", "400"),
        ("reload", "POST /admin/reload", "400"),
    ]
    assert {(entry.who, entry.address) for entry in entries} == {(kept.id, "127.0.0.1")}
    assert all(entry.moment >= before for entry in entries)


def test_probes_and_metrics_leave_no_entry_and_a_polled_summary_one(serve: Serve) -> None:
    server = serve("ok")
    for path in ("/healthz", "/readyz", "/metrics", "/admin", "/admin/summary") * 5:
        assert status(server, path) == 200
    assert [(entry.who, entry.action) for entry in found(server)] == [
        ("server", "server.start"),
        ("server", "model.loaded"),
        ("this machine", "summary.view"),
    ]


def test_data_without_an_entry_is_not_sent(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    server = serve("ok")

    def fail(*_: object) -> None:
        raise StorageError("disk full")

    monkeypatch.setattr(chain, "append", fail)
    answer = call(server.admin, "/admin/usage", None, "GET")
    assert answer.status == 503
    assert answer.json["error"]["code"] == LedgerUnavailable("").code
    assert status(server, "/metrics") == 200
    assert ask(server, ASK).status == 200


def test_a_reload_records_each_skill_that_changed(tmp_path: Path) -> None:
    folder = tmp_path / "skills"
    for name in ("help", "other"):
        write(folder, name)
    runner = says(tmp_path, "ok")
    made = parts(tmp_path, runner)
    made = replace(made, config=replace(made.config, skills=folder))
    with served(made, runner) as server:
        first = call(server.admin, "/admin/reload", b"").json["skills"]
        write(folder, "help", title="New")
        (folder / "other.toml").unlink()
        second = call(server.admin, "/admin/reload", b"").json["skills"]
        entries = found(server, "skill.changed")[-2:]
        assert [(entry.object, entry.result) for entry in entries] == [
            ("help", f"{first['help']} -> {second['help']}"),
            ("other", f"{first['other']} -> none"),
        ]


def test_a_promotion_is_recorded_with_both_versions(house: House) -> None:
    with house.served() as server:
        house("promote", "tiny@2", "--signers", str(house.signers))
        until(lambda: found(server, "model.promoted"))
        [entry] = found(server, "model.promoted")
        assert entry.object == "registry:tiny@production"
        assert entry.result.startswith("tiny@1 -> tiny@2 ")


def test_start_and_stop_are_recorded_with_the_configurations_digest(tmp_path: Path) -> None:
    runner = says(tmp_path, "ok")
    made = parts(tmp_path, runner)
    with served(made, runner) as server:
        pass
    [start] = found(server, "server.start")
    assert start.result == f"configuration {digest(made.config)}"
    assert [entry.action for entry in found(server)][-1] == "server.stop"
    assert digest(made.config) != digest(replace(made.config, slots=3))


def test_a_password_is_no_part_of_the_digest(tmp_path: Path) -> None:
    made = parts(tmp_path, says(tmp_path, "ok"))
    made.ledger.close()
    one, other = (replace(made.config, ledger=f"postgresql://u:{word}@h/d") for word in ("secret", "changed"))
    assert digest(one) == digest(other) != digest(made.config)
    assert "secret" not in without_password(one.ledger)


def test_keys_made_revoked_expired_and_removed_are_recorded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "KEY_SECONDS", 0.02)
    file = tmp_path / "keys.json"
    _, early = api_keys.create(file, ["help"], "before the start")
    runner = says(tmp_path, "ok")
    made = parts(tmp_path, runner, keys=str(file))
    with served(made, runner) as server:
        until(lambda: found(server, "key.created"))
        _, late = api_keys.create(file, ["help"], "")
        until(lambda: len(found(server, "key.created")) == 2)
        api_keys.limit(file, early.id, {"tokens_per_day": 10})
        until(lambda: found(server, "key.limited"))
        api_keys.limit(file, early.id, {"tokens_per_day": None})
        until(lambda: [entry.result for entry in found(server, "key.limited")] == ["tokens_per_day=10", "none"])
        api_keys.revoke(file, late.id)
        until(lambda: found(server, "key.revoked"))
        api_keys._write(file, api_keys.KeyFile((replace(early, expires="2020-01-01T00:00:00+00:00"),)))
        until(lambda: found(server, "key.expired") and found(server, "key.removed"))
    made = parts(tmp_path, runner, keys=str(file))
    with served(made, runner) as server:
        time.sleep(0.2)
    shown = [(entry.action, entry.object.split()[0]) for entry in found(server) if entry.action.startswith("key.")]
    assert shown == [
        ("key.created", early.id),
        ("key.created", late.id),
        ("key.limited", early.id),
        ("key.limited", early.id),
        ("key.revoked", late.id),
        ("key.expired", early.id),
        ("key.removed", late.id),
    ]


def test_no_prompt_and_no_key_is_recorded(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "admin.json"
    key = key_of(file, capsys, "--admin", "all", "--note", "planted-note")
    server = serve("ok", admin_keys=str(file))
    body = {**ASK, "messages": [{"role": "user", "content": "planted-prompt"}]}
    assert ask(server, body).status == 200
    for shown in (key, "sk-planted-guess"):
        for path in ("/admin/usage", "/admin/reload", "/admin/planted-path", "/admin/usage?by=planted-query"):
            status(server, path, shown, **{"User-Agent": "planted-agent"})
    guess = {"Authorization": "Bearer sk-planted-guess"}
    assert call(server.url, "/v1/chat/completions", body, **guess).status == 401
    until(lambda: found(server, "public.refused"))
    every = found(server)
    assert len(every) > 8
    for entry in every:
        text = "".join(str(getattr(entry, name)) for name in chain.COLUMNS)
        assert not [word for word in ("planted", key, KEY) if word in text]


def test_unchanged_key_files_cost_an_idle_server_no_query(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file, read = tmp_path / "admin.json", api_keys.read
    asked: list[Path] = []
    looks: list[Path] = []

    def counted(path: Path) -> api_keys.KeyFile:
        asked.append(path)
        return read(path)

    class Watched(audit.KeyFile):
        @property
        def changed(self) -> bool:
            looks.append(self.path)
            return super().changed

    monkeypatch.setattr(audit, "KEY_SECONDS", 0.001)
    monkeypatch.setattr(audit, "KeyFile", Watched)
    monkeypatch.setattr(api_keys, "read", counted)
    key_of(file, capsys, "--admin", "all")
    server = serve("ok", admin_keys=str(file))
    until(lambda: len(found(server, "key.created")) == 1)
    asked.clear()
    looks.clear()
    until(lambda: len(looks) >= 20)
    assert asked == []
    key_of(file, capsys, "--admin", "metrics")
    until(lambda: len(found(server, "key.created")) == 2)


def test_a_key_that_expires_is_noticed_in_an_unchanged_file(tmp_path: Path) -> None:
    key = api_keys.Key("0" * 64, ("help",), "2026-01-01T00:00:00+00:00", expires="2099-01-01T00:00:00+00:00")
    file = audit.KeyFile(tmp_path / "keys.json")
    assert file.changed
    file.note(file.stamp, [key])
    assert not file.changed
    file.note(file.stamp, [key, replace(key, expires="2026-01-01T00:00:00+00:00")])  # has its entry already
    assert not file.changed
    file.note(file.stamp, [replace(key, expires=(datetime.now(UTC) + timedelta(seconds=0.05)).isoformat())])
    until(lambda: file.changed)
