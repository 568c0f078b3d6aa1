"""Every closed row reaches a receiver that fails, is slow or is restarted, in order and with one id."""

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psycopg
import pytest

from server.errors import ConfigError
from server.metering import webhooks
from server.metering.ledger.connection import second_connection
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Opening, Settlement, Usage
from server.metering.webhooks import Target, Webhook
from server.storage.database import StorageError
from tests.support.harness import until


class Receiver(ThreadingHTTPServer):
    """Answers with the statuses it is given, then 204; remembers what it accepted and all headers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = []
        self.accepted: list[dict[str, Any]] = []
        self.seen: list[tuple[dict[str, str], bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/events?tenant=1"


class Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        status = self.server.statuses.pop(0) if self.server.statuses else 204
        self.server.seen.append((dict(self.headers), body))
        if status < 300:
            self.server.accepted += json.loads(body)
        self.send_response(status)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def reply(ledger: Ledger, name: str) -> None:
    ledger.open(Opening(name, "help", "tiny", 10, 20, key_id="k1")).result()
    ledger.settle(Settlement(name, Usage(10, 4, 3), "stop", "help", duration=0.5)).result()


def test_every_row_arrives_in_order_as_a_cloud_event(
    where: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "LONGEST_WAIT", 0.05)
    ledger = Ledger(where)
    for index in range(150):
        reply(ledger, f"r{index}")
    receiver.statuses = [500, 301, 204, 503]
    webhook = Webhook(ledger, Target(receiver.url, b"secret"), poll_seconds=0.02)
    webhook.start()
    until(lambda: len(receiver.accepted) == 150)
    reply(ledger, "later")
    until(lambda: len(receiver.accepted) == 151)
    [family] = webhook.collect()
    webhook.stop()
    assert [event["id"] for event in receiver.accepted] == [*(f"r{index}" for index in range(150)), "later"]
    first = receiver.accepted[0]
    assert {key: first[key] for key in ("specversion", "type", "source", "subject", "datacontenttype")} == {
        "specversion": "1.0",
        "type": "secateur.reply.settled.v1",
        "source": "/secateur/",
        "subject": "help",
        "datacontenttype": "application/json",
    }
    assert first["time"].endswith("+00:00")
    assert first["data"]["sequence"] == 1
    assert (first["data"]["prompt_tokens"], first["data"]["output_tokens"], first["data"]["key_id"]) == (10, 3, "k1")
    headers, body = receiver.seen[0]
    assert headers["Content-Type"] == "application/cloudevents-batch+json; charset=utf-8"
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"secret", signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"
    assert family.samples[0].value in (0, 1)  # the cursor follows the answer
    ledger.close()


def test_a_batch_sent_but_not_recorded_is_sent_again_with_the_same_ids(where: str, receiver: Receiver) -> None:
    ledger = Ledger(where)
    for index in range(3):
        reply(ledger, f"r{index}")
    target = Target(receiver.url)
    webhooks.post(target, [{"id": "r0"}])  # as a process that died before it could note the cursor
    for _ in range(2):
        webhook = Webhook(ledger, target, poll_seconds=0.02)
        webhook.start()
        until(lambda: len(receiver.accepted) == 4)
        until(lambda: ledger.remember("x", 1).result() is None)
        webhook.stop()
    assert [event["id"] for event in receiver.accepted] == ["r0", "r0", "r1", "r2"]
    ledger.close()


def test_only_one_of_two_replicas_sends(shared: str, receiver: Receiver) -> None:
    ledgers = [Ledger(shared, instance=name) for name in "ab"]
    hooks = [Webhook(ledger, Target(receiver.url), poll_seconds=0.01) for ledger in ledgers]
    for hook in hooks:
        hook.start()
    for index in range(40):
        reply(ledgers[index % 2], f"r{index}")
    until(lambda: len(receiver.accepted) >= 40)
    for hook in hooks:
        hook.stop()
    for ledger in ledgers:
        ledger.close()
    assert [event["id"] for event in receiver.accepted] == [f"r{index}" for index in range(40)]


def test_an_unexpected_error_does_not_end_the_thread(
    tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Rows wait in the ledger; a thread that died of it would never send one again, and say so to nobody."""
    monkeypatch.setattr(webhooks, "LONGEST_WAIT", 0.04)
    send, failures = webhooks.post, [RuntimeError("secret"), RuntimeError("secret")]

    def failing(target: Target, events: Any) -> None:
        if failures:
            raise failures.pop()
        send(target, events)

    monkeypatch.setattr(webhooks, "post", failing)
    ledger = Ledger(tmp_path / "usage.sqlite3")
    reply(ledger, "r0")
    webhook = Webhook(ledger, Target(receiver.url), poll_seconds=0.01)
    webhook.start()
    until(lambda: receiver.accepted)
    webhook.stop()
    ledger.close()
    assert caplog.messages == ["The webhook failed: RuntimeError"] * 2


def test_a_hanging_receiver_does_not_delay_shutdown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "STOP_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ledger = Ledger(tmp_path / "usage.sqlite3")
        reply(ledger, "r0")
        webhook = Webhook(ledger, Target(f"http://127.0.0.1:{silent.getsockname()[1]}/"), poll_seconds=0.01)
        webhook.start()
        connection, _ = silent.accept()
        webhook.stop()  # it waits for an answer that does not come, and is not waited for
        assert webhook._thread.is_alive()
        connection.close()
        webhook._thread.join(120)
        ledger.close()


def test_a_replica_that_loses_its_connection_loses_the_claim_to_send(
    shared: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock went with the connection: two senders would each send everything."""
    monkeypatch.setattr(webhooks, "LONGEST_WAIT", 0.2)
    ledgers = [Ledger(shared, instance=name, retry_seconds=0.05) for name in "ab"]
    with second_connection(shared) as held:
        assert held.claim(Target(receiver.url).name)
        first = Webhook(ledgers[0], Target(receiver.url), poll_seconds=0.01)
        first.start()
        reply(ledgers[0], "r0")
        with psycopg.connect(shared, autocommit=True) as other:
            other.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        with pytest.raises(StorageError):
            held.claim(Target(receiver.url).name)
    until(lambda: receiver.accepted)
    first.stop()
    for ledger in ledgers:
        ledger.close()
    assert [event["id"] for event in receiver.accepted] == ["r0"]


def test_an_unreachable_receiver_is_retried(tmp_path: Path) -> None:
    with pytest.raises(webhooks.Undelivered, match="cannot be reached"):
        webhooks.post(Target("http://127.0.0.1:9/"), [])


def test_a_malformed_secret_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("whsec_c2VjcmV0\n")
    assert webhooks.read_secret(tmp_path / "secret") == b"secret"
    for text in ("secret", "whsec_?"):
        (tmp_path / "secret").write_text(text)
        with pytest.raises(ConfigError, match="is not a webhook secret"):
            webhooks.read_secret(tmp_path / "secret")
    with pytest.raises(ConfigError, match="cannot be read"):
        webhooks.read_secret(tmp_path / "none")
