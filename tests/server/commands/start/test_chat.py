"""`secateur chat`: a chat with a server and with a model, and the check that streams pass a proxy."""

import io
import json
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import pytest

from server.commands.__main__ import main
from server.commands.start.talk import Reply, Service
from tests.support.harness import KEY, Serve
from tests.support.tiny_llama import tiny_llama


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_replies_stream_with_their_numbers_and_the_history_goes_along(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, "one\ntwo\n/new\nthree\n")
    assert main(["chat", serve("Good day.").url, "--key", KEY]) == 0
    printed = capsys.readouterr().out
    assert printed.count("Good day.") == 3
    counts = [int(found) for found in re.findall(r"\[(\d+) prompt tokens", printed)]
    assert len(counts) == 3
    assert counts[1] > counts[0]  # the history
    assert abs(counts[2] - counts[0]) < 5
    assert "\033" not in printed  # no terminal


def test_what_is_refused_is_one_sentence(
    serve: Serve, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SECATEUR_KEY", raising=False)
    url = serve().url
    for words, message in (
        ([url], "a server needs an API key"),
        ([url, "--key", "sk-wrong"], "(`secateur explain invalid_api_key`)"),
        (["README.md"], "README.md is no model"),
    ):
        assert main(["chat", *words]) == 2
        assert message in capsys.readouterr().err
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert main(["chat", f"http://127.0.0.1:{port}", "--key", "x"]) == 2
    assert "does not answer" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_is_served_for_the_chat_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tiny_llama(tmp_path / "tiny")
    typed(monkeypatch, "hello\n")
    assert main(["chat", str(model)]) == 0
    printed = capsys.readouterr().out
    url = re.findall(r"at (http://\S+)/v1", printed)[0]
    assert "prompt tokens" in printed
    with pytest.raises(OSError, match="refused"):
        urlopen(url)


@contextmanager
def holding(url: str) -> Iterator[str]:
    """A proxy that passes a response on when it has ended, as one that buffers does."""
    host, port = url.removeprefix("http://").split(":")
    listener = socket.create_server(("127.0.0.1", 0))

    def pass_on() -> None:
        client, _ = listener.accept()
        with client, socket.create_connection((host, int(port))) as behind:
            request = b""
            while not request.endswith(b"}"):
                request += client.recv(1 << 16)
            behind.sendall(request.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            whole = b""
            while piece := behind.recv(1 << 16):
                whole += piece
            client.sendall(whole)

    threading.Thread(target=pass_on, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.close()


def test_the_doctor_sees_a_proxy_that_holds_replies_back(serve: Serve, capsys: pytest.CaptureFixture[str]) -> None:
    server = serve("word " * 12, delay=0.02)
    with holding(server.url) as proxied:
        for url, state in ((server.url, "ok"), (proxied, "failed")):
            code = main(["doctor", "--url", url, "--key", KEY, "--skill", "help", "--json"])
            found = {finding["check"]: finding for finding in json.loads(capsys.readouterr().out)}
            assert (code, found["stream"]["state"]) == (int(state == "failed"), state)
    assert "page `Proxies`" in found["stream"]["remedy"]


def test_a_reply_counts_what_the_server_says(serve: Serve) -> None:
    reply = Reply()
    service = Service(serve("Good day.").url, KEY)
    text = "".join(service.reply("help", [{"role": "user", "content": "hi"}], reply))
    assert text == "Good day."
    assert reply.finish_reason == "stop"
    assert reply.completion_tokens >= reply.pieces > 0
    assert 0 < reply.first <= reply.last
