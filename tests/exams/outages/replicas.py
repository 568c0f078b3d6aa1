"""`python -m tests.exams.outages.replicas [--model DIR]`: limits of one key over two replicas, PostgreSQL and Redis.

Twenty clients use up a budget and all places of concurrent replies at both replicas; one replica is killed while it
holds places; Redis is stopped in mid-run. Without a model the runner is faked; nothing leaves this machine.
"""

import argparse
import http.client
import json
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import psycopg
from msgspec import Struct

from server.metering.ledger.connection import snapshot
from server.metering.reconcile import differences
from server.metering.usage import EVER, grouped
from server.skills import api_keys
from server.skills.counters.redis_store import LEASE_SECONDS
from server.skills.key_limits import KeyLimits
from tests.exams.client import Server
from tests.exams.row import Row, show
from tests.support.harness import until
from tests.support.postgres_server import new_database, running
from tests.support.redis_server import RedisServer

ASK = {"model": "help", "messages": [{"role": "user", "content": "Tell me about the sea."}], "stream": True}
CLIENTS = 20
PLACES = 3


class Answer(NamedTuple):
    """One client's reply: its status, error code and tokens."""

    status: int
    code: str = ""
    tokens: int = 0


def ask(url: str, key: str) -> Answer:
    """Ask for a reply and read it to its end; status 0 if the server is gone."""
    tokens = 0
    try:
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)) as connection:
            body = {**ASK, "stream_options": {"include_usage": True}}
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Authorization": f"Bearer {key}"})
            response = connection.getresponse()
            if response.status != 200:
                return Answer(response.status, json.loads(response.read())["error"]["code"])
            for line in response:
                event = json.loads(line[6:]) if line.startswith(b"data: {") else {}
                tokens = (event.get("usage") or {}).get("total_tokens", tokens)
    except (OSError, http.client.HTTPException):
        return Answer(0)
    return Answer(200, "", tokens)


class Replicas(Struct):
    """Two servers that share everything that replicas share."""

    servers: list[Server]
    redis: RedisServer
    ledger: str
    keys: Path
    lease: int
    """Seconds after which the leases of a killed replica lapse."""

    def key(self, **limits: int) -> tuple[str, str]:
        """A new key with these limits, and its id."""
        shown, made = api_keys.create(self.keys, ["help"], "", limits=KeyLimits(**limits))
        return shown, made.id


@contextmanager
def replicas(folder: Path, model: str, fail: str, lease: int) -> Iterator[Replicas | None]:
    """Run two servers, PostgreSQL and Redis; yields None if one of these is not installed."""
    program = shutil.which("redis-server")
    with running() as socket, ExitStack() as stack:
        if socket is None or program is None:
            yield None
            return
        folder.mkdir(parents=True, exist_ok=True)
        redis = RedisServer(program, folder)
        redis.start()
        stack.callback(redis.stop)
        ledger, keys = new_database(socket), folder / "keys.json"
        shared = {"ledger": ledger, "keys": keys, "rate_limits": redis.url, "rate_limits_fail": fail, "tokens": 48}
        module = "tests.exams.servers.real_server" if model else "tests.exams.servers.exam_server"
        own = {"model": model, "context": 512, "slots": 16} if model else {"step": 0.005, "lease": lease}
        servers = [Server(folder / name, {**shared, **own, "instance": name}, module) for name in "ab"]
        for server in servers:
            stack.callback(server.kill)
        yield Replicas(servers, redis, ledger, keys, lease)


def spend_budget(found: Replicas, budget: int) -> Iterator[Row]:
    """Twenty clients ask at both replicas until the key's budget of the day is used up."""
    key, id = found.key(tokens_per_day=budget)

    def client(index: int) -> list[Answer]:
        answers = [ask(found.servers[index % 2].url, key)]
        while answers[-1].status == 200:
            answers.append(ask(found.servers[index % 2].url, key))
        return answers

    started = time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as pool:
        answers = [answer for answers in pool.map(client, range(CLIENTS)) for answer in answers]
    seconds = time.monotonic() - started
    told = sum(answer.tokens for answer in answers)
    with snapshot(found.ledger) as database:
        sums = {row[0]: row[2] + row[4] for row in grouped(database, ("key",), EVER)}
        [(used, reserved)] = database.execute(
            "SELECT used, reserved FROM key_budgets WHERE key_id = ? AND length(period) = 10", (id,)
        )
        broken = differences(database)
    codes = Counter(answer.code for answer in answers if answer.status != 200)
    replies = sum(answer.status == 200 for answer in answers)
    yield Row("a key's budget, 20 clients, 2 replicas", f"{used} of {budget} in {replies} replies, {seconds:.1f} s",
              "no more, and all but less than a prompt", budget - 100 < used <= budget)  # fmt: skip
    yield Row("clients, ledger and usage by key", f"{told}, {used}, {sums[id]}, reserved {reserved}", "equal",
              told == used == sums[id] and reserved == 0 and not broken)  # fmt: skip
    yield Row("refusals", str(dict(codes)), "key_budget_exceeded alone", set(codes) == {"key_budget_exceeded"})


def fill_places(found: Replicas, seconds: float) -> Iterator[Row]:
    """Twenty clients ask at both replicas for `seconds`, with PLACES concurrent replies allowed.

    A reply's row is open only while it holds its place, so no snapshot of the ledger may have more open rows than
    places. What clients see is no proof: they read the end of a reply after its place was given back.
    """
    key, id = found.key(concurrent_replies=PLACES)
    ends = time.monotonic() + seconds

    def client(index: int) -> list[Answer]:
        answers = []
        while time.monotonic() < ends:
            answers.append(ask(found.servers[index % 2].url, key))
            if answers[-1].status == 429:
                time.sleep(0.02)
        return answers

    with ThreadPoolExecutor(CLIENTS + 1) as pool:
        watching = pool.submit(open_rows, found.ledger, id, ends)
        answers = [answer for answers in pool.map(client, range(CLIENTS)) for answer in answers]
    seen = watching.result()
    replies = sum(answer.status == 200 for answer in answers)
    codes = Counter(answer.code for answer in answers if answer.status != 200)
    yield Row("3 concurrent replies, 20 clients, 2 replicas",
              f"at most {max(seen)} at once in {len(seen)} snapshots, {replies} replies, {dict(codes)}",
              "3", 0 < max(seen) <= PLACES and set(codes) == {"key_rate_limited"})  # fmt: skip


def open_rows(ledger: str, key: str, ends: float) -> list[int]:
    """The number of open rows of a key, in one snapshot after another."""
    seen: list[int] = []
    with psycopg.connect(ledger, autocommit=True) as connection:
        while time.monotonic() < ends or not seen:
            statement = "SELECT count(*) FROM requests WHERE state = 'open' AND key_id = %s"
            [(count,)] = connection.execute(statement, (key,)).fetchall()
            seen.append(int(count))
    return seen


def kill_holder(found: Replicas) -> Iterator[Row]:
    """Kill the replica that holds all places; the other one gets them when their leases lapse."""
    key, _ = found.key(concurrent_replies=PLACES)
    first, second = found.servers
    killed = threading.Event()
    with ThreadPoolExecutor(PLACES) as pool:
        reading = [pool.submit(endless, first.url, key, killed) for _ in range(PLACES)]
        until(lambda: ask(second.url, key).status == 429)
        first.process.kill()
        started = time.monotonic()
        killed.set()
        early = ask(second.url, key).status
        until(lambda: ask(second.url, key).status == 200)
        waited = time.monotonic() - started
        for one in reading:
            one.result()
    yield Row("kill -9 of a replica with all places", f"{early} at once, a place after {waited:.1f} s",
              f"429, then within about {found.lease} s", early == 429)  # fmt: skip


def endless(url: str, key: str, stop: threading.Event) -> None:
    """Ask one reply after another until told to stop."""
    while not stop.is_set():
        ask(url, key)


def warnings(output: Iterable[str]) -> int:
    """How many lines warn of the store of rate limits."""
    return sum("store of rate limits" in line and "WARNING" in line for line in output)


def stop_redis(found: Replicas, fail: str) -> Iterator[Row]:
    """Stop Redis while clients ask, and start it again."""
    key, _ = found.key(requests_per_minute=100_000, concurrent_replies=50)
    phases: dict[str, Counter[int]] = {"before": Counter(), "away": Counter(), "after": Counter()}
    phase, stop, slowest = ["before"], threading.Event(), [0.0]

    def client(index: int) -> None:
        while not stop.is_set():
            which, started = phase[0], time.monotonic()
            status = ask(found.servers[index % len(found.servers)].url, key).status
            if which == phase[0] != "between":
                phases[which][status] += 1
                slowest[0] = max(slowest[0], time.monotonic() - started) if status == 503 else slowest[0]
            if status != 200:
                time.sleep(0.02)

    with ThreadPoolExecutor(8) as pool:
        for index in range(8):
            pool.submit(client, index)
        until(lambda: phases["before"][200] >= 8)
        phase[0] = "between"  # not counted, nor what began before and ends now
        found.redis.stop()
        until(lambda: not any(up(server) for server in found.servers))
        phase[0], lost = "away", time.monotonic()
        until(lambda: sum(phases["away"].values()) >= 40)
        ready = [server.ready() - lost for server in found.servers]
        phase[0] = "between"
        found.redis.start()
        again = time.monotonic()
        until(lambda: all(up(server) for server in found.servers))
        seconds, phase[0] = time.monotonic() - again, "after"
        until(lambda: phases["after"][200] >= 8)
        stop.set()
    wanted, said = {200} if fail == "open" else {503}, [warnings(one.output) for one in found.servers]
    yield Row(f"Redis away, {fail}: answers", str({name: dict(counts) for name, counts in phases.items()}),
              f"{wanted} while away, else 200",
              set(phases["away"]) == wanted and {*phases["before"], *phases["after"]} == {200})  # fmt: skip
    yield Row(f"Redis away, {fail}: ready, log lines, back, 503 in",
              f"{bool(ready)}, {said}, {seconds:.1f} s, {slowest[0]:.2f} s",
              "ready, a line at each end", said == [2] * len(said))  # fmt: skip


def up(server: Server) -> bool:
    """Whether a server says that the store of rate limits answers."""
    with closing(http.client.HTTPConnection(urlsplit(server.admin).netloc, timeout=120)) as connection:
        connection.request("GET", "/metrics")
        return b"\nsecateur_rate_limit_store_up 1.0" in connection.getresponse().read()


def exam(
    folder: Path, model: str = "", *, budget: int = 20_000, seconds: float = 10.0, lease: int = int(LEASE_SECONDS)
) -> Iterator[Row]:
    """All of it; nothing without PostgreSQL and Redis."""
    with replicas(folder / "closed", model, "closed", lease) as found:
        if found is None:
            return
        yield from spend_budget(found, budget)
        yield from fill_places(found, seconds)
        yield from stop_redis(found, "closed")
        yield from kill_holder(found)
    with replicas(folder / "open", model, "open", lease) as found:
        assert found is not None
        yield from stop_redis(found, "open")


def main(argv: Any) -> int:
    """Print the table; returns 1 if something did not hold."""
    parser = argparse.ArgumentParser(prog="python -m tests.exams.outages.replicas", description=__doc__)
    parser.add_argument("--model", default="", help="the directory of a model to serve (default: a fake runner)")
    with tempfile.TemporaryDirectory(prefix="secateur-exam-", ignore_cleanup_errors=True) as folder:
        return show(exam(Path(folder), str(Path(model).resolve()) if (model := parser.parse_args(argv).model) else ""))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
