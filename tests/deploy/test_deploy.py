"""The deployment files, each checked by the program that reads it: the server, nginx or systemd."""

import http.client
import re
import shutil
import ssl
import subprocess
import threading
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace
from torch import Tensor

from server import config
from server.engine.batch import Batch
from server.web.listeners import CLOSE_SECONDS
from server.web.signals import FORCE_SECONDS
from tests.conftest import ROOT
from tests.exams.hostile import nginx
from tests.server.web.test_listeners import call
from tests.support.fakes import ScriptRunner
from tests.support.harness import HELP, KEY, ORIGIN, Serve
from tests.support.visitor import Visitor

DEPLOY = ROOT / "deploy"
ENDING = 2 * CLOSE_SECONDS + FORCE_SECONDS


def certificate(folder: Path) -> None:
    """A self-signed certificate for chat.example."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "chat.example")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + timedelta(days=1)).sign(
        key, hashes.SHA256()
    )
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "chat.example.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (folder / "chat.example.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))


@contextmanager
def proxied(folder: Path, **servers: str) -> Iterator[tuple[str, str]]:
    """Run nginx with our file, its ports and paths replaced; yields its TLS and its plain address.

    `servers` are URLs by `port_` and the port that the file names: of one server, or of two replicas.
    """
    certificate(folder)
    tls, plain = nginx.free_port(), nginx.free_port()
    text = (DEPLOY / "nginx" / ("secateur.conf" if len(servers) == 1 else "replicas.conf")).read_text()
    for old, new in (
        *(
            (f"server 127.0.0.1:{port.removeprefix('port_')}", f"server {url.removeprefix('http://')}")
            for port, url in servers.items()
        ),
        ("listen 443 ssl;", f"listen 127.0.0.1:{tls} ssl;"),
        ("listen 80;", f"listen 127.0.0.1:{plain};"),
        ("    listen [::]:443 ssl;\n", ""),
        ("    listen [::]:80;\n", ""),
        ("/etc/ssl/", f"{folder}/"),
    ):
        assert old in text
        text = text.replace(old, new)
    with nginx.running(text, tls):
        yield f"127.0.0.1:{tls}", f"127.0.0.1:{plain}"


class Through(NamedTuple):
    """A response through nginx, and the number of parts that it arrived in."""

    status: int
    headers: Any
    parts: int


def over_tls(
    netloc: str,
    method: str,
    path: str,
    body: bytes | None = None,
    arrived: Callable[[], object] = int,
    /,
    **headers: str,
) -> Through:
    """Send a request, trusting any certificate; calls `arrived` after each part of the response."""
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    with closing(http.client.HTTPSConnection(netloc, timeout=120, context=trusting)) as connection:
        connection.request(method, path, body, {"Host": "chat.example", **sent})
        answer = connection.getresponse()
        parts = 0
        while answer.read1(4096):
            parts += 1
            arrived()
        return Through(answer.status, answer.headers, parts)


class Gated(ScriptRunner):
    """Samples a token only after the client received the previous part."""

    def __init__(self, script: Sequence[int], vocabulary: int) -> None:
        super().__init__(script, vocabulary)
        self.gate = threading.Semaphore(1)

    def forward(self, batch: Batch) -> Tensor:
        assert self.gate.acquire(timeout=120), "nothing of the answer arrived"
        return super().forward(batch)


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed: tests/install")
def test_nginx_passes_events_as_they_come_and_the_visitors_own_address(serve: Serve, tmp_path: Path) -> None:
    skill = replace(HELP, sessions_per_minute=3)
    runner = Gated([10], vocabulary=258)
    served = serve(runner=runner, skills=(skill,), trusted_proxies=["127.0.0.1"])
    with proxied(tmp_path, port_8000=served.url) as (netloc, plain):
        ask = b'{"model": "help", "messages": [{"role": "user", "content": "hi"}], "stream": true}'
        credentials = {"Authorization": f"Bearer {KEY}"}
        parts = over_tls(netloc, "POST", "/v1/chat/completions", ask, runner.gate.release, **credentials).parts
        assert parts > 10

        def session(**headers: str) -> int:
            return over_tls(netloc, "POST", "/v1/widget/session", b'{"skill": "help"}', **headers).status

        # nginx replaces any address that the caller claims; a direct caller cannot claim one.
        shown = [session(Origin=ORIGIN, X_Forwarded_For=f"192.0.2.{number}") for number in range(4)]
        assert shown == [200, 200, 200, 429]
        visitor = Visitor(None, url=served.url, skill="nobody")
        assert visitor.post("session", {"skill": "help"}, X_Forwarded_For="198.51.100.1").status == 200

        assert over_tls(netloc, "GET", "/metrics").status == 404
        assert over_tls(netloc, "GET", "/healthz").headers["Strict-Transport-Security"]
        assert over_tls(netloc, "POST", "/v1/chat/completions", b"x" * (2 << 20)).status == 413
        with closing(http.client.HTTPConnection(plain, timeout=120)) as connection:
            connection.request("GET", "/widget.js", headers={"Host": "evil.example"})
            moved = connection.getresponse()
            assert (moved.status, moved.headers["Location"]) == (308, "https://chat.example/widget.js")


@pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed: tests/install")
def test_nginx_asks_the_other_replica_while_one_is_restarted(serve: Serve, tmp_path: Path) -> None:
    gone = f"http://127.0.0.1:{nginx.free_port()}"
    served = serve("ok", skills=(HELP,), trusted_proxies=["127.0.0.1"])
    ask = b'{"model": "help", "messages": [{"role": "user", "content": "hi"}]}'
    credentials = {"Authorization": f"Bearer {KEY}"}
    with proxied(tmp_path, port_8001=gone, port_8002=served.url) as (netloc, _):
        answers = [over_tls(netloc, "POST", "/v1/chat/completions", ask, **credentials).status for _ in range(6)]
    assert answers == [200] * 6
    with served.parts.ledger.snapshot() as database:
        assert database.execute("SELECT count(*) FROM requests") == [(6,)]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
@pytest.mark.parametrize(("name", "settings"), [("secateur", "server"), ("secateur@", "replica-%i")])
def test_the_units_are_valid_and_have_few_rights(name: str, settings: str, tmp_path: Path) -> None:
    text = (DEPLOY / "systemd" / f"{name}.service").read_text()
    unit = tmp_path / f"{name}.service"
    assert f"ExecStart=/opt/secateur/bin/secateur serve /etc/secateur/{settings}.toml" in text
    unit.write_text(text.replace("/opt/secateur/bin/secateur", "/bin/true"))
    verified = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True, check=True)
    assert "secateur" not in verified.stderr  # a misspelt name is only warned about
    command = ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(unit)]
    subprocess.run(command, capture_output=True, check=True)


def test_the_units_of_one_server_and_of_replicas_give_the_same_rights() -> None:
    def rights(name: str) -> list[str]:
        lines = (DEPLOY / "systemd" / f"{name}.service").read_text().splitlines()
        own = ("#", "Description", "After", "ExecStart", "StateDirectory=", "WorkingDirectory")
        return [line for line in lines if not line.startswith(own)]

    assert rights("secateur") == rights("secateur@")


def test_each_gives_the_server_time_to_drain() -> None:
    drain = config.Config(model="m", skills=Path("s"), ledger="l").drain_seconds
    unit = (DEPLOY / "systemd" / "secateur.service").read_text()
    service = compose()["services"]["secateur"]
    assert int(re.findall(r"TimeoutStopSec=(\d+)", unit)[0]) >= drain + ENDING
    assert int(service["stop_grace_period"].removesuffix("s")) >= drain + ENDING
    limit = int(re.findall(r"LimitNOFILE=(\d+)", unit)[0])
    assert limit > config.Config(model="m", skills=Path("s"), ledger="l").connections


def compose() -> Any:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def test_the_image_installs_existing_extras_and_probes_an_existing_path(serve: Serve) -> None:
    text = (DEPLOY / "Containerfile").read_text()
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    extras = re.findall(r"^ARG EXTRAS=(\S+)$", text, re.MULTILINE)
    assert len(extras) == text.count("[${EXTRAS}]") == 1
    assert "--require-hashes --no-deps --requirement requirements.lock" in text
    assert set(",".join(extras).split(",")) <= known.keys()
    (asked,) = re.findall(r"urlopen\('(http://127.0.0.1:8000)(/\w+)'", text)
    assert call(serve("ok").url, asked[1]).status == 200
    published = {port.rpartition(":")[2] for port in compose()["services"]["secateur"]["ports"]}
    assert published == set(re.findall(r"^EXPOSE (\d+) (\d+)$", text, re.MULTILINE)[0])
    assert compose()["services"]["secateur"]["build"] == {"context": "..", "dockerfile": "deploy/Containerfile"}
