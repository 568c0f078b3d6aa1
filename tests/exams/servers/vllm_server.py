"""A server that speaks vLLM's token protocol as 0.32 does, with this engine and a fake runner behind it."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from server.engine.engine import Engine
from server.engine.runners import Runner
from server.engine.sequence import Sampling
from server.engine.stream import Stream, Token
from server.text.grammar.compiler import GrammarCompiler
from server.text.grammar.grammar import Grammar
from tests.exams.servers.app_server import listening


class VllmServer:
    """Answers by `engine`; `faults` are statuses of the next answers, `cut_after` closes streams after some events."""

    def __init__(self, runner: Runner, *, slots: int = 8, context: int = 512, key: str = "") -> None:
        self.grammars: GrammarCompiler | None = None
        """Compiles grammars; without it they are ignored."""
        self.engine = Engine(runner, slots=slots, context=context, batch_tokens=max(16, slots), max_waiting=10**6)
        self.key = key
        self.requests: list[dict[str, Any]] = []
        self.aborted: list[str] = []
        self.faults: list[int] = []
        self.cut_after: int | None = None
        self.alive = True
        self.url = ""
        self._streams: dict[str, Stream] = {}

    def app(self) -> Starlette:
        routes = [
            Route("/inference/v1/generate", self.generate, methods=["POST"]),
            Route("/inference/v1/abort_requests", self.abort, methods=["POST"]),
            Route("/health", self.health),
            Route("/metrics", self.metrics),
        ]
        return Starlette(routes=routes)

    async def health(self, _: Request) -> Response:
        return Response(status_code=200 if self.alive else 503)

    async def metrics(self, _: Request) -> Response:
        return PlainTextResponse(f'vllm:kv_cache_usage_perc{{engine="0"}} {self.engine.kv_used_ratio}\n')

    async def abort(self, request: Request) -> Response:
        for name in (await request.json())["request_ids"]:
            self.aborted.append(name)
            if stream := self._streams.get(name):
                await stream.aclose()
        return Response()

    async def generate(self, request: Request) -> Response:
        if self.key and request.headers.get("authorization") != f"Bearer {self.key}":
            return Response(status_code=401)
        body = await request.json()
        self.requests.append(body)
        if self.faults:
            return Response('{"error": {"message": "told to fail"}}', self.faults.pop(0))
        wanted = body["sampling_params"]
        sampling = Sampling(
            temperature=wanted["temperature"],
            max_tokens=wanted["max_tokens"],
            min_tokens=wanted["min_tokens"],
            seed=wanted.get("seed"),
            stop_ids=frozenset(wanted["stop_token_ids"]),
            logprobs=wanted.get("logprobs"),
        )
        if self.grammars and (structured := wanted.get("structured_outputs")):
            constraint = await self.grammars.compile(Grammar("lark", structured["grammar"]))
            sampling = replace(sampling, constraint=constraint)
        stream = self.engine.submit(body["token_ids"], sampling, skill="remote", cache_salt=body["cache_salt"])
        name = f"generate-tokens-{body['request_id']}"
        self._streams[name] = stream
        return StreamingResponse(self._events(name, stream), media_type="text/event-stream")

    async def _events(self, name: str, stream: Stream) -> AsyncIterator[str]:
        try:
            count = 0
            async for token in stream:
                yield f"data: {json.dumps(chunk(name, token))}\n\n"
                count += 1
                if count == self.cut_after:
                    raise ConnectionResetError
            yield "data: [DONE]\n\n"
        finally:
            await stream.aclose()
            del self._streams[name]


def chunk(name: str, token: Token) -> dict[str, Any]:
    """An event with one token, as vLLM writes it: the sampled id first among the likely ones."""
    scores = None
    if token.logprobs is not None:
        sampled = {"token_id": token.id, "logprob": token.logprobs.sampled, "rank": 1}
        top = [{"token_id": id, "logprob": logprob} for id, logprob in token.logprobs.top if id != token.id]
        scores = {"content": [{**sampled, "top_logprobs": [sampled, *top]}]}
    choice = {"index": 0, "finish_reason": token.finish, "token_ids": [token.id], "logprobs": scores}
    return {"request_id": name, "usage": None, "output_mode": "tokens", "choices": [choice]}


@contextmanager
def running(server: VllmServer) -> Iterator[VllmServer]:
    """Serve on a free port of this machine, in a thread."""
    server.engine.start()
    try:
        with listening(server.app()) as server.url:
            yield server
    finally:
        server.engine.stop()
