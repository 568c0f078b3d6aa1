"""`secateur bench FIRST SECOND`: two servers on the same prompts in turns."""

import json
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from server.commands.bench.command import main
from server.commands.bench.compare import Load, Target, Turn, compare, table
from server.commands.start.talk import Service
from server.errors import SecateurError

A, B = (Target(Service(f"http://{name}", ""), name) for name in "ab")


def test_turns_alternate_and_ratios_are_of_each_round() -> None:
    asked: list[tuple[str, int]] = []
    figures = iter(range(1, 100))

    def take(target: Target, load: Load, number: int) -> Turn:
        asked.append((target.model, number))
        value = float(next(figures))
        return Turn(value, 10 * value, 100 * value, counted=True)

    found = compare((A, B), Load(rounds=3), take)
    assert asked == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("b", 2), ("a", 2), ("a", 3), ("b", 3)]
    expected = [4 / 3, 5 / 6, 8 / 7]
    for ratio in found.ratios.values():
        assert (ratio.low, ratio.high) == pytest.approx((min(expected), max(expected)))
        assert ratio.median == pytest.approx(statistics.median(expected))
    assert "| TTFT, ms | 6.0 | 5.0 | 1.14 (0.83 to 1.33) |" in table(found)


@contextmanager
def openai_style(words: int, *, usage: bool) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that streams `words` words; the list gets the body of each request, with its authorization."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._send(json.dumps({"data": [{"id": "first"}, {"id": "second"}]}))

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append(body | {"authorization": self.headers["Authorization"]})
            events: list[dict[str, Any]] = [{"choices": [{"delta": {"content": "word "}}]} for _ in range(words)]
            if usage:
                events.append({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 10 * words}})
            self._send("".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n")

        def _send(self, text: str) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_both_get_the_same_prompts_with_their_own_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.key").write_text("sk-one\n")
    (tmp_path / "two.key").write_text("sk-two\n")
    (tmp_path / "prompts.txt").write_text("What is pruning?\n\nWho was Secateur?\n")
    with openai_style(4, usage=True) as (first, asked), openai_style(5, usage=False) as (second, also_asked):
        words = [first, second, "--rounds", "2", "--streams", "3", "--tokens", "7", "--json"]
        words += ["--prompts", str(tmp_path / "prompts.txt"), "--model", "first", "--model", "other"]
        words += ["--key-file", str(tmp_path / "one.key"), "--key-file", str(tmp_path / "two.key")]
        assert main(words) == 0
    assert {body["authorization"] for body in asked} == {"Bearer sk-one"}
    assert {body["authorization"] for body in also_asked} == {"Bearer sk-two"}
    assert ({body["model"] for body in asked}, {body["model"] for body in also_asked}) == ({"first"}, {"other"})
    prompts = [sorted(body["messages"][0]["content"] for body in bodies) for bodies in (asked, also_asked)]
    assert prompts[0] == prompts[1]
    assert len(set(prompts[0])) == len(prompts[0]) == 2 + 2 * 4  # two of the warm-up, four of each round
    assert {body["max_tokens"] for body in asked} == {4, 7}
    found = json.loads(capsys.readouterr().out)
    assert [[turn["counted"] for turn in pair] for pair in found["turns"]] == [[True, False]] * 2
    assert found["ratios"].keys() == {"first_token_ms", "single", "batched"}


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    with openai_style(1, usage=True) as (url, _):
        with pytest.raises(SecateurError, match="fewer than two pieces"):
            main([url, url, "--rounds", "1"])
        with pytest.raises(SecateurError, match="neither a server's address"):
            main([url, str(tmp_path)])
        with pytest.raises(SecateurError, match="cannot be read"):
            main([url, url, "--key-file", str(tmp_path / "none")])
    with pytest.raises(SecateurError, match="does not answer"):
        main([url, url])
    with pytest.raises(SystemExit):
        main([url])
