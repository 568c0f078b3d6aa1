"""The remote engine against servers that speak vLLM's protocol: what it sends, its backends' failures, and its end."""

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from server.engine.remote.backends import SLACK, Backend, Backends
from server.engine.remote.http_stream import Target
from server.engine.remote.remote_engine import RemoteEngine, Sizes
from server.engine.sequence import Sampling
from server.engine.stream import Stream
from server.errors import EngineFailed, InvalidRequest, Overloaded
from tests.exams.servers.vllm_server import VllmServer, running
from tests.server.engine.test_engine import collect, until
from tests.support.fakes import ScriptRunner

GREEDY = Sampling(temperature=0, max_tokens=10)
SECRET = "a key of the backend"


def server(delay: float = 0.0, key: str = "") -> VllmServer:
    return VllmServer(ScriptRunner([1, 2, 3], vocabulary=9, delay=delay), context=64, key=key)


@contextmanager
def started(servers: Sequence[VllmServer], **more: Any) -> Iterator[RemoteEngine]:
    with ExitStack() as stack:
        for one in servers:
            stack.enter_context(running(one))
        headers = {"Authorization": f"Bearer {SECRET}"}
        targets = [Target(one.url, headers) for one in servers]
        engine = RemoteEngine(Backends(targets, probe_seconds=0.05), Sizes("mine", 64, 9, **more))
        engine.start()
        stack.callback(engine.stop)
        yield engine


def test_the_request_has_ids_and_sampling_and_no_text() -> None:
    async def main() -> dict[str, Any]:
        with started([backend := server()]) as engine:
            sampling = Sampling(
                temperature=0.5,
                max_tokens=3,
                top_k=4,
                logit_bias=((3, 1.5),),
                seed=7,
                stop_ids=frozenset({8}),
                stop_token_ids=(8,),
            )
            await collect(engine.submit([4, 5], sampling, skill="a", cache_salt="ada"))
        return backend.requests[0]

    sent = asyncio.run(main())
    assert (sent["token_ids"], sent["model"], sent["stream"]) == ([4, 5], "mine", True)
    wanted = sent["sampling_params"]
    assert {name: wanted[name] for name in ("temperature", "max_tokens", "top_k", "seed", "stop_token_ids")} == {
        "temperature": 0.5, "max_tokens": 3, "top_k": 4, "seed": 7, "stop_token_ids": [8],
    }  # fmt: skip
    assert wanted["logit_bias"] == {"3": 1.5}
    assert wanted["ignore_eos"] is True
    assert "ada" not in str(sent)


def test_callers_share_a_backends_prefix_cache_only_where_that_is_allowed() -> None:
    async def salts(**more: Any) -> list[str]:
        with started([backend := server()], **more) as engine:
            for skill, caller in (("a", "ada"), ("a", "ada"), ("a", "bob"), ("b", "ada")):
                await collect(engine.submit([4], GREEDY, skill=skill, cache_salt=caller))
        return [request["cache_salt"] for request in backend.requests]

    alone = asyncio.run(salts())
    assert alone[0] == alone[1]
    assert len(set(alone)) == 3
    shared = asyncio.run(salts(share_prefixes=True))
    assert shared[0] == shared[1] == shared[2] != shared[3]


def test_logprobs_are_the_most_likely_in_order() -> None:
    async def main() -> None:
        with started([backend := server()]) as engine:
            sampling = Sampling(temperature=0, max_tokens=2, logprobs=2)
            tokens = await collect(engine.submit([4], sampling, skill="a"))
            local = await asyncio.to_thread(asyncio.run, collect_local(backend, sampling))
        assert [token.logprobs for token in tokens] == [token.logprobs for token in local]
        assert all(token.logprobs and len(token.logprobs.top) == 2 for token in tokens)

    async def collect_local(backend: VllmServer, sampling: Sampling) -> list[Any]:
        return await collect(backend.engine.submit([4], sampling, skill="a"))

    asyncio.run(main())


@pytest.mark.parametrize(
    ("sampling", "said"),
    [
        (Sampling(max_tokens=1, prompt_logprobs=0), "prompt_logprobs"),
        (Sampling(max_tokens=0), "max_tokens of 0"),
    ],
)
def test_what_the_protocol_lacks_is_refused_by_its_name(sampling: Sampling, said: str) -> None:
    async def main() -> None:
        with started([server()]) as engine, pytest.raises(InvalidRequest, match=said) as refused:
            engine.submit([4], sampling, skill="a")
        assert refused.value.code == "unsupported_by_engine"

    asyncio.run(main())


@pytest.mark.parametrize("fault", [500, 503, 429])
def test_before_the_first_token_another_backend_is_tried(fault: int) -> None:
    servers = [server(), server()]

    async def run() -> None:
        with started(servers) as engine:
            assert len(await collect(engine.submit([4], GREEDY, skill="a"))) == 10
            first = next(one for one in servers if one.requests)
            second = next(one for one in servers if not one.requests)
            first.faults = [fault]
            assert len(await collect(engine.submit([4], GREEDY, skill="a"))) == 10
            assert (len(first.requests), len(second.requests)) == (2, 1)

    asyncio.run(run())


def test_a_refusal_is_not_tried_again_and_shows_nothing_of_the_backend(caplog: pytest.LogCaptureFixture) -> None:
    servers = [server(), server()]

    async def main() -> None:
        with started(servers) as engine:
            for one in servers:
                one.faults = [400]
            with pytest.raises(EngineFailed, match="refused the request with status 400"):
                await collect(engine.submit([4], GREEDY, skill="a"))
            assert sum(len(one.requests) for one in servers) == 1
            assert engine.failure is None

    asyncio.run(main())
    assert "told to fail" not in caplog.text


def test_a_reply_that_breaks_off_is_not_tried_again_and_counts_what_arrived() -> None:
    servers = [server(), server()]

    async def main() -> None:
        with started(servers) as engine:
            for one in servers:
                one.cut_after = 4
            stream = engine.submit([4], GREEDY, skill="a")
            read: list[int] = []
            with pytest.raises(EngineFailed, match="failed after 4 tokens"):
                await read_into(read, stream)
            assert (read, stream.sampled) == ([1, 2, 3, 3], 4)
            assert sum(len(one.requests) for one in servers) == 1
            assert engine.running == 0

    asyncio.run(main())


async def read_into(read: list[int], stream: Stream) -> None:
    async for token in stream:
        read.append(token.id)


def test_no_backend_is_overloaded_and_one_that_comes_back_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def main() -> None:
        engine = RemoteEngine(Backends([Target(f"http://127.0.0.1:{port}")]), Sizes("mine", 64, 9))
        with pytest.raises(Overloaded, match="do not answer"):
            await collect(engine.submit([4], GREEDY, skill="a"))
        engine.stop()
        with started([backend := server()]) as engine:
            backend.alive = False
            await until(lambda: not engine.backends.all[0].alive)
            backend.alive = True
            await until(lambda: engine.backends.all[0].alive)
            assert len(await collect(engine.submit([4], GREEDY, skill="a"))) == 10

    asyncio.run(main())


def test_silence_before_and_after_the_first_token_ends_a_reply() -> None:
    async def main() -> None:
        with started([backend := server()], first_token_seconds=0.2, token_seconds=0.2) as engine:
            runner = backend.engine._runner
            assert isinstance(runner, ScriptRunner)
            runner.hold(0)
            with pytest.raises(Overloaded, match="do not answer"):
                await collect(engine.submit([4], GREEDY, skill="a"))
            runner.release()
            runner.hold(3)
            with pytest.raises(EngineFailed, match="failed after"):
                await collect(engine.submit([4], GREEDY, skill="a"))
            runner.release()

    asyncio.run(main())


def test_closing_a_stream_frees_the_backends_slot() -> None:
    async def main() -> None:
        with started([backend := server()]) as engine:
            runner = backend.engine._runner
            assert isinstance(runner, ScriptRunner)
            runner.hold(3)
            stream = engine.submit([4], Sampling(temperature=0, max_tokens=60), skill="a")
            await anext(stream)
            await stream.aclose()
            runner.release()
            await until(lambda: backend.engine.running == 0 and engine.running == 0)
            await until(lambda: bool(backend.aborted))
            assert stream.sampled < 10

    asyncio.run(main())


def test_a_wrong_key_is_refused() -> None:
    async def main() -> None:
        with started([server(key=SECRET)]) as engine:
            assert len(await collect(engine.submit([4], GREEDY, skill="a"))) == 10
        with started([server(key="another")]) as engine, pytest.raises(EngineFailed, match="status 401"):
            await collect(engine.submit([4], GREEDY, skill="a"))

    asyncio.run(main())


def test_prefixes_stay_and_a_busy_one_spreads() -> None:
    backends = Backends([Target(f"http://127.0.0.1:{port}") for port in (1, 2, 3)])
    none: frozenset[Backend] = frozenset()
    homes = {name: backends.choose(name, none) for name in map(str, range(60))}
    assert set(homes.values()) == set(backends.all)
    assert all(backends.choose(name, none) is home for name, home in homes.items())
    loads = []
    for _ in range(30):
        chosen = backends.choose("busy", none)
        chosen.load += 1
        loads.append(chosen)
    assert max(loads.count(one) for one in backends.all) - min(loads.count(one) for one in backends.all) <= SLACK + 1
    for one in backends.all[:2]:
        one.alive = False
    assert backends.choose("busy", none) is backends.all[2]
