"""The measurements of `make bench-serving` at a small size: on a tiny model, and on fake servers."""

import asyncio
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from server.config import load
from server.skills.skill import Skill
from tests.benchmarks.serving.__main__ import main
from tests.benchmarks.serving.figures import Trial
from tests.benchmarks.serving.loads import goodput, over_http, warm
from tests.benchmarks.serving.loads.load import Target, Timing
from tests.benchmarks.serving.options import Options
from tests.benchmarks.serving.servers import Setting, configure
from tests.support.tiny_llama import tiny_llama

QUICK, SLOW = (0.1, 0.01), (0.1, 0.06)


def options(tmp_path: Path, most: int = 64) -> Options:
    return Options(tmp_path / "model", "0", 1, 1, 0.1, most, tmp_path, tmp_path, tmp_path / "model.gguf")


def test_the_server_and_the_engine_alone_are_measured_on_one_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in (over_http, warm):
        monkeypatch.setattr(module, "WORDS", 20)
    model = tiny_llama(tmp_path / "tiny")
    events = ["--event", "over-http", "--event", "warm", "--rounds", "1", "--cores", "0"]
    assert main([str(model), *events, "--work", str(tmp_path / "work"), "--peers", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    http, first, *_ = printed.out.splitlines()[2:]
    assert http.startswith("| chat over HTTP, 8 streams, tiny, tokens/s: server / engine alone |")
    assert first.startswith("| TTFT over HTTP, prompt of ")
    assert "of which 0 tokens" not in printed.err  # the second question hit the prefix cache


def test_a_missing_artifact_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [str(tmp_path / "none"), "--event", "warm", "--cores", "0", "--work", str(tmp_path / "work")]
    assert main(arguments) == 2
    message = capsys.readouterr().err
    log = tmp_path / "work" / "warm" / "log"
    assert str(log) in message
    assert "none" in log.read_text()


def test_the_server_reads_the_files_that_are_written(tmp_path: Path) -> None:
    setting = Setting(tmp_path / "model", "0", tmp_path / "files", threads=2, slots=5, context=300)
    config = load(configure(setting, {"bench": 'Say "no".\nAlways.'}))
    assert (config.threads, config.slots, config.context, config.look_up) == (2, 5, 300, "off")
    assert Skill.read(config.skills / "bench.toml").system == 'Say "no".\nAlways.'


def test_each_server_is_searched_for_its_own_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[str, int]] = []

    def start(name: str) -> goodput.Start:
        def begin(users: int) -> AbstractContextManager[Target]:
            begun.append((name, users))
            return nullcontext(Target(0, name))

        return begin

    async def attempt(target: Target, users: int, seconds: float) -> Trial:
        first, gap = QUICK if users <= (9 if target.model == "ours" else 3) else SLOW
        return Trial(users, (first,), (gap,), 1.0)

    monkeypatch.setattr(goodput, "attempt", attempt)
    mine, peer = (goodput.Racer(name, start(name), options(tmp_path)) for name in ("ours", "theirs"))
    for _ in range(12):
        mine.turn()
        peer.turn()
    assert (mine.limit, peer.limit) == (9, 3)
    assert begun[:6] == [("ours", 1), ("theirs", 1), ("ours", 2), ("theirs", 2), ("ours", 4), ("theirs", 4)]
    assert goodput.line("streams", mine, peer).ratio.median == 3


def test_a_server_that_does_not_answer_in_time_fails_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(target: Target, question: str, tokens: int) -> Timing:
        await asyncio.sleep(60)
        raise AssertionError

    monkeypatch.setattr(goodput, "reply", never)
    trial = asyncio.run(goodput.attempt(Target(0), 2, 0.05))
    assert (trial.users, trial.first_tokens, trial.good) == (2, (), False)


def test_a_peer_that_holds_no_stream_counts_as_one(tmp_path: Path) -> None:
    mine, peer = (goodput.Racer(name, lambda users: nullcontext(Target(0)), options(tmp_path)) for name in "ab")
    mine.limit, peer.limit = 4, 0
    assert goodput.line("streams", mine, peer).ratio.median == 4
