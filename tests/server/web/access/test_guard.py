"""The admin listener: open to admin keys or, without any, to this machine."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from server import config
from server.commands.__main__ import main
from server.errors import ConfigError
from server.web.access.guard import OPEN, least_role
from server.web.http import throttle
from tests.server.commands.keys.test_command import made
from tests.server.web.test_listeners import call
from tests.support.harness import Serve, Served, until

CLOSED = ("/metrics/", "/Metrics", "//metrics", "/", "/admin/", "/admin/unknown")


def key_of(file: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """A new key's text."""
    assert main(["keys", "create", "--file", str(file), *words]) == 0
    return made(capsys.readouterr().out)


def status(server: Served, path: str, key: str = "", **headers: str) -> int:
    """The status of a request to the admin listener."""
    shown = {"Authorization": f"Bearer {key}"} if key else {}
    method = "POST" if path == "/admin/reload" else "GET"
    return int(call(server.admin, path, b"" if method == "POST" else None, method, **shown, **headers).status)


def test_every_path_but_the_probes_and_the_empty_page_needs_a_key(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(throttle, "BURST", 1000)
    file = tmp_path / "admin.json"
    server = serve(admin_keys=str(file))
    app: Any = server.apps.admin
    while not hasattr(app, "routes"):  # unwrap the middleware
        app = app._app
    routes = {route.path for route in app.routes}
    managed = {path for path in routes if path.startswith("/admin/skills")}
    assert len(managed) == 23
    figures = {"/admin/usage", "/admin/summary", "/admin/registry", "/admin/feedback"}
    assert routes - OPEN - managed == {"/metrics", "/admin/reload", *figures}
    for path in (*CLOSED, *routes - OPEN):
        assert status(server, path) == 401, path
        assert status(server, path, "sk-wrong") == 401, path
        assert status(server, path, "", Host="localhost") == 401, path
    assert {status(server, path) for path in OPEN} == {200}

    everything = key_of(file, capsys, "--admin", "all", "--note", "operator")
    scrape = key_of(file, capsys, "--admin", "metrics", "--note", "prometheus")
    public = key_of(file, capsys, "--skill", "help")
    assert [status(server, path, everything) for path in ("/metrics", "/admin/usage", "/admin/registry")] == [200] * 3
    assert status(server, "/metrics", scrape) == 200
    for path in routes - OPEN - {"/metrics"}:
        assert status(server, path, scrape) == 403
    assert status(server, "/metrics", public) == 403

    assert main(["keys", "list", str(file)]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[2:] for line in listed] == [
        ["admin:all", "operator"],
        ["admin:metrics", "prometheus"],
        ["help"],
    ]
    assert main(["keys", "revoke", str(file), listed[0].split()[0]]) == 0
    assert status(server, "/admin/usage", everything) == 401
    file.write_text("damaged")
    assert status(server, "/metrics", scrape) == 401


def test_an_admin_key_opens_no_skill(serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve(admin_keys=str(tmp_path / "k.json"))
    server.parts.skills._keys._path = tmp_path / "k.json"
    key = key_of(tmp_path / "k.json", capsys, "--admin", "all")
    body = {"model": "help", "messages": [{"role": "user", "content": "hi"}]}
    assert call(server.url, "/v1/chat/completions", body, Authorization=f"Bearer {key}").status == 403


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"Host": "localhost:9464"}, 200),
        ({"Host": "[::1]:9464"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost", "Origin": "https://evil.example"}, 403),
        ({"Host": "localhost", "Origin": "null"}, 403),
        ({"Host": "localhost", "Origin": "http://localhost"}, 200),
    ],
)
def test_without_keys_a_foreign_page_cannot_ask_through_a_local_browser(
    serve: Serve, headers: dict[str, str], expected: int
) -> None:
    assert status(serve(), "/metrics", **headers) == expected


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "admin.example"])
def test_beyond_loopback_there_must_be_keys(tmp_path: Path, host: str, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "server.toml"
    text = f'model = "m"\nskills = "s"\nledger = "l"\nadmin_host = "{host}"\n'
    file.write_text(text)
    with pytest.raises(ConfigError, match=r"needs keys: `secateur keys create .* at `\$.admin_host`"):
        config.load(file)
    assert main(["serve", str(file)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    file.write_text(text + 'admin_keys = "admin.json"\n')
    assert config.load(file).admin_keys == Path("admin.json")
    file.write_text(text.replace(f'"{host}"', '"::1"'))
    assert config.load(file).admin_keys is None


@pytest.mark.slow
def test_reconcile_and_a_real_prometheus_send_their_keys(
    serve: Serve, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Uses the commented line of deploy/prometheus/prometheus.yml."""
    from tests.deploy.test_prometheus import CONFIG, by_type, prometheus

    file, shown = tmp_path / "admin.json", tmp_path / "key"
    server = serve("ok", admin_keys=str(file))
    shown.write_text(key_of(file, capsys, "--admin", "metrics") + "\n")
    ledger = server.parts.config.ledger
    assert main(["reconcile", ledger, "--metrics", f"{server.admin}/metrics"]) == 2
    assert "cannot be read: Unauthorized; `--key-file` names" in capsys.readouterr().err
    assert main(["reconcile", ledger, "--metrics", f"{server.admin}/metrics", "--key-file", str(shown)]) == 0
    if shutil.which("prometheus") is None:
        pytest.skip("Debian's package prometheus is not installed")
    line = "# authorization: {credentials_file: /etc/prometheus/secateur.key}"
    assert line in CONFIG.read_text()
    text = CONFIG.read_text().replace(line, f"authorization: {{credentials_file: {shown}}}")
    with prometheus(server.admin, tmp_path, text) as port:
        until(lambda: by_type(port) == {"input": 0.0, "cached": 0.0, "output": 0.0})
    (tmp_path / "checked.yml").write_text(text.replace("rule_files: [alerts.yml]", ""))
    subprocess.run(["promtool", "check", "config", str(tmp_path / "checked.yml")], check=True, capture_output=True)


@pytest.mark.parametrize(
    ("path", "role"),
    [
        ("/admin/logout", "viewer"),
        ("/admin/skills/help/try", "editor"),
        ("/admin/skills/help/revisions", "editor"),
        ("/admin/skills/help/publish", "publisher"),
        ("/admin/skills/help/rollback", "publisher"),
        ("/admin/skills/help/experiment/start", "publisher"),
        ("/admin/skills/help/knowledge/upload", "editor"),
        ("/admin/skills/help/keys/create", "operator"),
        ("/admin/skills/help/try/else", "operator"),
        ("/admin/reload", "operator"),
        ("/admin/unknown", "operator"),
    ],
)
def test_the_least_role_that_may_change_something(path: str, role: str) -> None:
    assert least_role(path) == role


def test_what_visitors_wrote_is_read_by_operators_alone() -> None:
    roles = {part: least_role(f"/admin/skills/help/{part}", reading=True) for part in ("conversations", "questions")}
    assert roles == {"conversations": "operator", "questions": "viewer"}
    assert least_role("/admin/skills", reading=True) == "viewer"
