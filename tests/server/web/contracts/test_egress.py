"""No content of a request makes the server open a connection or start a process."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT
from tests.exams.client import Server
from tests.server.web.test_listeners import BEARER, call, complete
from tests.server.web.test_logs import plant
from tests.support.harness import until
from tests.support.visitor import Visitor

pytestmark = pytest.mark.slow

URL = "http://127.0.0.1:9/latest/meta-data"


def asked(folder: Path, **settings: object) -> list[str]:
    """The outgoing connections that the server logged after URLs were planted in every field of a request."""
    server = Server(folder, settings, "tests.exams.servers.watched_server")
    try:
        server.ready()
        plant(server)
        at: Any = server
        image = [{"type": "image_url", "image_url": {"url": URL}}]
        for message in (image, [{"type": "text", "text": URL}], URL):
            body = {"model": "help", "messages": [{"role": "user", "content": message}]}
            complete(at, body)
            complete(at, {**body, "api_base": URL, "base_url": URL, "tools": [{"type": "mcp", "server_url": URL}]})
        headers: dict[str, Any] = {
            "X_Forwarded_For": "evil.example",
            "X_Forwarded_Host": URL,
            "Host": "evil.example",
            "Forwarded": URL,
        }
        call(server.url, "/v1/models", **headers, **BEARER)
        call(server.url, f"/v1/models/{URL}", **BEARER)
        visitor = Visitor.at(server.url)
        visitor.ask(URL, context=URL)
        visitor.post("session", {"skill": "help", "identity": URL, "resume": URL})
        until(lambda: server.metric("secateur_requests_running") == 0)
        if settings:  # what they name is asked in a thread, soon after the replies
            until(lambda: any(line.startswith("asked") for line in server.output))
    finally:
        server.kill()
    return [line for line in server.output if line.startswith("asked")]


def test_the_server_makes_no_outgoing_request(tmp_path: Path) -> None:
    assert asked(tmp_path) == []


def test_a_configured_webhook_is_seen_by_the_watcher(tmp_path: Path) -> None:
    assert [line for line in asked(tmp_path, webhook="http://127.0.0.1:9/usage") if "'127.0.0.1', 9" in line]


@pytest.mark.parametrize("module", ["http.client", "urllib.request", "httpx", "requests", "aiohttp"])
def test_only_these_files_import_an_http_client(module: str) -> None:
    root = ROOT / "server"
    found = {
        str(path.relative_to(root)) for path in root.rglob("*.py") if f"import {module}\n" in path.read_text() + "\n"
    }
    assert found <= {
        "commands/bench/client.py",
        "commands/start/talk.py",
        "engine/remote/backends.py",
        "knowledge/sources/client.py",
        "metering/prometheus.py",
        "metering/reconcile.py",
        "metering/webhooks.py",
        "web/access/provider.py",
    }
