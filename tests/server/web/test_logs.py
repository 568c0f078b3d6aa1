"""Secrets planted in every field of a request reach no log, metric, span, ledger or error; ids and counts do."""

import gzip
import http.server
import json
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from server.web.logs import JsonLines, Text, quieten
from tests.server.web.test_listeners import BEARER, call, complete
from tests.support.harness import KEY, Serve, until
from tests.support.visitor import Visitor

SECRET = "canary-4711"
REPLY = "reply-0815"
PARENT = "00-1af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
ASK = {"model": "help", "messages": [{"role": "user", "content": f"hi {SECRET}"}]}


def plant(served: Any) -> list[bytes]:
    """Send SECRET in every field of every request; returns the bodies that must not repeat it."""
    visitor = Visitor(served)
    visitor.ask(f"hello {SECRET}", context=SECRET)
    answers = [
        complete(served, {**ASK, "user": SECRET, "metadata": {"a": SECRET}, "audio": {"voice": SECRET}}),
        complete(served, ASK, Authorization=f"Bearer {SECRET}"),
        complete(served, ASK, Authorization=SECRET, Cookie=SECRET, X_Request_Id=SECRET, Traceparent=SECRET),
        complete(served, b'{"messages": "' + SECRET.encode()),
        call(served.url, f"/v1/models?key={SECRET}", X_Forwarded_For=SECRET, User_Agent=SECRET, **BEARER),
        call(served.url, "/nowhere", Origin=f"https://{SECRET}.example"),
        call(served.url, "/healthz", method=SECRET.upper(), Tracestate=f"a={SECRET}", Traceparent=PARENT),
    ]
    complete(served, ASK)
    complete(served, {**ASK, "stream": True})
    refused = [
        visitor.post("session", {"skill": "help", "key": SECRET, "resume": SECRET, "identity": SECRET}),
        visitor.post("messages", {"text": "x", "context": SECRET * 1000}),
        visitor.post("messages", {"text": "x"}, Authorization=f"Bearer {SECRET}"),
        visitor.get(f"replies/{SECRET}"),
        visitor.post("feedback", {"reply": SECRET, "rating": "up", "comment": SECRET}),
    ]
    call(served.url, f"/v1/widget/replies/{SECRET}?from={SECRET}")
    call(served.url, f"/{SECRET}")  # the answer names the path
    return [*(answer.content for answer in answers), *(json.dumps(answer.json).encode() for answer in refused)]


def test_planted_secrets_are_nowhere(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    quieten()
    served = serve(REPLY)
    errors = plant(served)
    metrics = call(served.admin, "/metrics").content
    until(lambda: served.apps.replies.idle)
    served.stop()
    folder = served.parts.config.feedback_file.parent
    files = [path.read_bytes() for path in folder.glob("*.sqlite3*") if path.is_file()]
    logged = "\n".join(json.dumps(JsonLines().format(record)) + Text().format(record) for record in caplog.records)
    for secret in (SECRET, SECRET.upper(), REPLY, KEY):
        assert secret not in logged
        assert secret.encode() not in metrics
        assert not [file for file in files if secret.encode() in file]
        assert not [error for error in errors if secret.encode() in error]
    assert len(files) >= 2


def test_each_request_is_one_line_with_its_id_and_counts(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "server.access")
    served = serve("ok")
    answer = complete(served, {**ASK, "stream": True})
    call(served.url, f"/v1/skills/{SECRET}", **BEARER)
    call(served.url, f"/{SECRET}")
    until(lambda: len(lines(caplog)) == 3)
    first, second, third = lines(caplog)
    assert first["request_id"] == answer.headers["X-Request-Id"]
    assert (first["route"], first["status"], first["skill"]) == ("/v1/chat/completions", 200, "help")
    assert (first["output_tokens"], first["finish"]) == (3, "stop")
    assert first["input_tokens"] > 3
    assert (second["route"], second["status"]) == ("/v1/skills/{name}", 404)
    assert (third["route"], third["status"]) == ("unmatched", 404)


def lines(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    records = [record for record in caplog.records if record.name == "server.access"]
    return [json.loads(JsonLines().format(record)) for record in records]


def test_a_message_cannot_forge_a_line() -> None:
    record = logging.LogRecord("x", logging.INFO, "", 0, 'one\n{"level": "error"}', (), None)
    assert "\n" not in JsonLines().format(record)


def test_invalid_requests_are_logged_once_a_minute_and_errors_always() -> None:
    program = """
import logging
from server.web import logs
logs.configure("text", "warning")
listener = logging.getLogger("uvicorn.error")
for _ in range(50):
    listener.warning("Invalid HTTP request received.")
    listener.warning("Unsupported upgrade request.")
    listener.error("wrong")
logs.SELDOM_SECONDS = 0.0
listener.warning("Invalid HTTP request received.")
"""
    written = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    counted = [written.count(words) for words in ("Invalid HTTP", "Unsupported upgrade", "wrong")]
    assert counted == [2, 1, 50]


def test_the_settings_choose_form_and_level() -> None:
    program = (
        "import logging; from server.web import logs; logs.configure('json', 'info'); "
        "logging.getLogger('a').info('hello', extra={'facts': {'b': 1}}); logging.getLogger('a').debug('no')"
    )
    written = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stderr
    line = json.loads(written)
    assert (line["message"], line["b"], line["level"], line["logger"]) == ("hello", 1, "info", "a")


@contextmanager
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """A receiver of OTLP over HTTP: its URL, and the bodies it received."""
    received: list[bytes] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/v1/traces", received
        finally:
            server.shutdown()
            thread.join()


def test_spans_arrive_with_their_parent_and_without_text(
    serve: Serve, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "server.access")
    logged: list[str] = []

    # Formatted in the request's own context, as by the handler of standard error.
    def note(record: logging.LogRecord) -> bool:
        logged.append(JsonLines().format(record))
        return True

    caplog.handler.addFilter(note)
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    parent = "0af7651916cd43dd8448eb211c80319c"
    with collector() as (address, received):
        served = serve(REPLY, traces=address)
        plant(served)
        complete(served, {**ASK, "stream": True}, Traceparent=f"00-{parent}-b7ad6b7169203331-01")
        until(lambda: served.apps.replies.idle)
        served.stop()
        until(lambda: received)
    spans = []
    for body in received:
        assert not [secret for secret in (SECRET, SECRET.upper(), REPLY, KEY) if secret.encode() in body]
        message = service.ExportTraceServiceRequest.FromString(body)
        spans += [span for resource in message.resource_spans for scope in resource.scope_spans for span in scope.spans]
    together = {span.name: span for span in spans if span.trace_id.hex() == parent}
    child = together.pop("POST /v1/chat/completions")
    assert list(together) == ["ledger", "queue", "prefill", "decode"]
    assert {span.parent_span_id for span in together.values()} == {child.span_id}
    assert all(span.start_time_unix_nano <= span.end_time_unix_nano for span in together.values())
    assert together["prefill"].end_time_unix_nano == together["decode"].start_time_unix_nano
    assert [line for line in map(json.loads, logged) if line.get("trace_id") == parent and line["finish"] == "stop"]
    found = {attribute.key: attribute.value for attribute in child.attributes}
    assert found["http.response.status_code"].int_value == 200
    assert found["gen_ai.request.model"].string_value == "help"
    assert found["gen_ai.usage.output_tokens"].int_value == len(REPLY) + 1
