"""Chat backends: what they are sent, what is counted, and what is refused by name; one is this product's own server."""

import asyncio
import json
import urllib.request
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import APIStatusError, OpenAI
from starlette.requests import Request

from server.commands.__main__ import main
from server.engine.remote.backends import Backends
from server.engine.remote.chat_protocol import ChatProtocol, Extra
from server.engine.remote.http_stream import Target
from server.engine.remote.remote_engine import RemoteEngine, Sizes
from server.engine.sequence import Sampling
from server.errors import ConfigError
from server.models.rollout import CurrentModel, Model, Rollout
from server.models.suitability import suitability_warnings
from server.skills.skill import Skill
from tests.exams.servers.chat_server import ChatServer, event, running
from tests.support.harness import HELP, KEY, LINEAGE, Serve, Served, ledger_of, parts, says, served, until

Front = Callable[..., Served]
ASK = [{"role": "user", "content": "hi"}]


@pytest.fixture
def front(tmp_path: Path) -> Any:
    """Starts a server whose model runs on chat backends."""
    with ExitStack() as stack:

        def start(
            urls: Sequence[str],
            takes: Sequence[Extra] = (),
            skills: Sequence[Skill] = (HELP,),
            token_seconds: float = 30,
            **more: Any,
        ) -> Served:
            runner = says(tmp_path, "not this")
            made = parts(tmp_path, runner, skills, **more)
            own = made.rollout.models[0]
            targets = [Target(url, {"Authorization": f"Bearer {KEY}"}, health="/up") for url in urls]
            sizes = Sizes("help", 512, own.engine.vocabulary, token_seconds=token_seconds)
            engine = RemoteEngine(Backends(targets, probe_seconds=0.05), sizes, partial(ChatProtocol, extras=takes))
            current = CurrentModel(Model("tiny", engine, own.tokenizer, LINEAGE))
            made = msgspec.structs.replace(made, rollout=Rollout({made.config.model: current}, made.config.model))
            return stack.enter_context(served(made, runner))

        yield start


def client(server: Served) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def streamed(server: Served, **more: Any) -> tuple[str, list[dict[str, Any]]]:
    """The text and the events of a streamed reply."""
    body = {"model": "help", "messages": ASK, "stream": True, "stream_options": {"include_usage": True}, **more}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        lines = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: {")]
    events = [json.loads(line) for line in lines]
    return "".join(c["delta"].get("content") or "" for one in events for c in one.get("choices", ())), events


def test_our_own_server_as_backend_counts_what_the_front_charges(
    serve: Serve, front: Front, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    behind = serve("0123456789")
    with ExitStack() as stack:
        folder = tmp_path / "front"
        folder.mkdir()
        server = front([behind.url.replace("localhost", "127.0.0.1")], ledger="front.sqlite3")
        text, events = streamed(server)
        stack.close()
    assert text == "0123456789"
    [there], [here] = ledger_of(behind), ledger_of(server)
    columns = ("prompt_tokens", "cached_tokens", "output_tokens")
    assert [here[name] for name in columns] == [there[name] for name in columns]
    assert (here["output_tokens"], here["outcome"], here["usage_from"]) == (11, "stop", "backend")
    assert events[-1]["usage"]["completion_tokens"] == 11
    assert there["usage_from"] == "ids"
    assert main(["usage", str(tmp_path / "front.sqlite3"), "--by", "usage_from", "--format", "jsonl"]) == 0
    assert json.loads(capsys.readouterr().out)["usage_from"] == "backend"


def test_the_backend_gets_messages_budgeted_tokens_and_what_it_takes(front: Front) -> None:
    skill = msgspec.structs.replace(HELP, system="Be brief.", temperature=0.5, top_k=7)
    with running(ChatServer(("a", "b"))) as backend:
        server = front([backend.url], ("top_k", "min_p", "repeat_penalty", "seed"), (skill,))
        streamed(server, max_tokens=5)
        assert backend.keys == [f"Bearer {KEY}"]
    [sent] = backend.requests
    assert sent["messages"] == [{"role": "system", "content": "Be brief."}, *ASK]
    wanted = {"max_tokens": 5, "temperature": 0.5, "top_k": 7, "min_p": 0.0, "repeat_penalty": 1.0, "model": "help"}
    assert {name: sent.get(name) for name in wanted} == wanted
    assert "seed" not in sent
    [row] = ledger_of(server)
    assert (row["prompt_tokens"], row["cached_tokens"], row["output_tokens"]) == (70, 60, 40)


def test_a_stop_string_is_cut_here_and_counted_by_pieces(front: Front) -> None:
    with running(ChatServer(tuple("0123456789"))) as backend:
        backend.held_after = 7
        server = front([backend.url])
        text, events = streamed(server, stop=["45"])
    assert text == "0123"
    assert next(c["finish_reason"] for one in events for c in one["choices"] if c["finish_reason"]) == "stop"
    [row] = ledger_of(server)
    assert (row["usage_from"], row["outcome"]) == ("pieces", "stop")
    assert 6 <= row["output_tokens"] <= 7
    assert row["prompt_tokens"] > 0


def test_a_backend_without_usage_is_counted_by_pieces_and_one_that_writes_on_is_cut(front: Front) -> None:
    with running(ChatServer(tuple("0123456789"))) as backend:
        backend.usage = None
        server = front([backend.url])
        assert streamed(server)[0] == "0123456789"
        text, events = streamed(server, max_tokens=4)
    assert text == "0123"
    assert next(c["finish_reason"] for one in events for c in one["choices"] if c["finish_reason"]) == "length"
    rows = ledger_of(server)
    assert [(row["output_tokens"], row["usage_from"]) for row in rows] == [(10, "pieces"), (4, "pieces")]


def test_a_backend_that_dies_in_mid_reply_charges_what_was_delivered(front: Front) -> None:
    with running(ChatServer(tuple("0123456789"))) as backend, running(ChatServer(("x",))) as other:
        backend.cut_after = other.cut_after = 5
        other.pieces = backend.pieces
        server = front([backend.url, other.url])
        text, events = streamed(server)
        assert len(backend.requests) + len(other.requests) == 1
    assert text == "01234"
    assert "failed after 5 tokens" in events[-1]["error"]["message"]
    [row] = ledger_of(server)
    assert (row["outcome"], row["output_tokens"], row["usage_from"]) == ("error", 5, "pieces")


def test_another_backend_is_tried_before_the_first_piece(front: Front) -> None:
    with running(ChatServer(("well",))) as backend, running(ChatServer(("well",))) as other:
        backend.faults, other.faults = [503], [503]
        server = front([backend.url, other.url])
        until(lambda: streamed_or_none(server) == "well")
        assert ledger_of(server)[-1]["outcome"] == "stop"


class CountsFirst(ChatServer):
    """Reports usage before its first piece; the first of all requests to such servers then breaks off."""

    failed: bool

    async def _events(self, request: Request, most: int) -> AsyncIterator[str]:
        if not CountsFirst.failed:
            CountsFirst.failed = True
            yield event(choices=[], usage=self.usage)
            raise ConnectionResetError
        self.usage = None
        async for one in super()._events(request, most):
            yield one


def test_usage_of_a_backend_that_failed_before_the_first_piece_does_not_count(front: Front) -> None:
    CountsFirst.failed = False
    with running(CountsFirst(tuple("012"))) as backend, running(CountsFirst(tuple("012"))) as other:
        server = front([backend.url, other.url])
        assert streamed(server)[0] == "012"
        assert len(backend.requests) + len(other.requests) == 2
    [row] = ledger_of(server)
    assert (row["usage_from"], row["output_tokens"]) == ("pieces", 3)


class SilentAtTheEnd(ChatServer):
    """Says nothing behind the reason of the reply's end, and keeps the connection."""

    async def _events(self, request: Request, most: int) -> AsyncIterator[str]:
        async for one in super()._events(request, most):
            yield one
            if '"finish_reason": "stop"' in one:
                while not await request.is_disconnected():
                    await asyncio.sleep(0.01)
                return


def test_a_whole_reply_whose_usage_never_comes_is_counted_by_pieces(front: Front) -> None:
    with running(SilentAtTheEnd(tuple("012"))) as backend:
        server = front([backend.url], token_seconds=0.3)
        text, events = streamed(server)
    assert text == "012"
    assert [one for one in events if "error" in one] == []
    [row] = ledger_of(server)
    assert (row["outcome"], row["usage_from"], row["output_tokens"]) == ("stop", "pieces", 3)


def streamed_or_none(server: Served) -> str | None:
    try:
        return streamed(server)[0] or None
    except OSError:
        return None


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("logprobs", True),
        ("logit_bias", {"3": 1}),
        ("seed", 7),
        ("top_k", 5),
        ("min_p", 0.1),
        ("min_tokens", 2),
        ("repetition_penalty", 1.2),
        ("stop_token_ids", [3]),
        ("ignore_eos", True),
        ("n", 2),
        ("response_format", {"type": "json_object"}),
        ("return_token_ids", True),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ],
)
def test_what_needs_ids_is_refused_by_its_name(front: Front, option: str, value: Any) -> None:
    skill = msgspec.structs.replace(HELP, logprobs=True, choices=4)
    with running(ChatServer(("x",))) as backend:
        server = front([backend.url], skills=(skill,))
        with client(server) as asked, pytest.raises(APIStatusError, match=f"does not support {option}") as refused:
            asked.chat.completions.create(
                model="help", messages=[{"role": "user", "content": "hi"}], extra_body={option: value}
            )
        assert refused.value.status_code == 400
        assert not backend.requests
        assert all(row["outcome"] == "rejected" for row in ledger_of(server))


def test_a_raw_prompt_is_refused(front: Front) -> None:
    with running(ChatServer(("x",))) as backend:
        server = front([backend.url])
        with client(server) as asked, pytest.raises(APIStatusError, match="does not support prompt"):
            asked.completions.create(model="help", prompt="Once")


def test_a_skill_whose_sampling_the_backends_lack_is_refused_at_start(front: Front) -> None:
    with running(ChatServer(("x",))) as backend:
        server = front([backend.url])
        model = server.parts.rollout.models[0]
        with pytest.raises(ConfigError, match=r"'help' does not suit the model 'tiny'.*does not support top_k"):
            list(suitability_warnings(msgspec.structs.replace(HELP, top_k=5), model))
        assert not list(suitability_warnings(HELP, model))


def test_options_that_backends_take_are_let_through() -> None:
    protocol = ChatProtocol(Sizes("mine", 64, 9), ("seed", "repeat_penalty"))
    engine = RemoteEngine(Backends([Target("http://127.0.0.1:1")]), Sizes("mine", 64, 9), lambda _: protocol)
    engine.check_options(Sampling(max_tokens=3, seed=5, repetition_penalty=1.3))
