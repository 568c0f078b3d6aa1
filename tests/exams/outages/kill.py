"""Repeated kill -9 at random moments during streams: the ledger stays exact and the server recovers by itself."""

import random
import sqlite3
import threading
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psycopg
from msgspec import Struct

from server.commands.__main__ import main
from tests.exams.client import Read, Server, ask
from tests.support.harness import until
from tests.support.postgres_server import new_database, running

TOKENS = 24
COLUMNS = "request_id, state, prompt_tokens, cached_tokens, output_tokens"


class Result(Struct):
    """Findings over all rounds."""

    rounds: int = 0
    settled: int = 0
    cut: int = 0
    wrong: int = 0
    """Settled rows that differ from the usage reported to the client."""
    missing: int = 0
    """Tokens that clients received and the ledger lacks."""
    ahead: int = 0
    """The most tokens of one cut stream that the ledger counts and the client did not receive."""
    slowest: float = 0.0
    """Start-up seconds beyond imports and the model: ledger, recovery and listeners."""
    damaged: int = 0
    different: int = 0
    """Rounds after which `secateur reconcile` reported a difference."""

    @property
    def good(self) -> bool:
        """Whether the ledger is exact in every round."""
        broken = self.wrong + self.missing + self.damaged + self.different
        return not broken and self.ahead <= 1 and self.slowest < 2 and self.settled > 0 and self.cut > 0


def on_postgres(folder: Path, *, rounds: int, streams: int) -> Result | None:
    """The exam with its ledger in PostgreSQL, which keeps running; None if it is not installed."""
    with running() as socket:
        return exam(folder, rounds=rounds, streams=streams, url=new_database(socket)) if socket else None


def exam(folder: Path, *, rounds: int, streams: int, seed: int = 1, url: str = "") -> Result:
    """Run the exam with a ledger in `folder`, or in the database at `url`."""
    draw, result = random.Random(seed), Result()
    path = folder / "ledger"
    where = url or str(path / "usage.sqlite3")
    named = {"ledger": url} if url else {}
    for _ in range(rounds):
        server = Server(path, {"slots": streams, "tokens": TOKENS, **named})
        try:
            result.slowest = max(result.slowest, server.opened + server.ready() - server.announced)
            reads = load(server, streams, draw)
        finally:
            server.kill()
        result.rounds += 1
        compare(where, reads, result)
    final = Server(path, named)
    final.ready()
    final.kill()
    compare(where, [], result)
    result.different += main(["reconcile", where]) != 0
    return result


def load(server: Server, streams: int, draw: random.Random) -> list[Read]:
    """Clients stream one reply after another until a kill at a random moment."""
    reads: list[Read] = []

    def client() -> None:
        while server.alive():
            reads.append(ask(server.url))

    threads = [threading.Thread(target=client) for _ in range(streams)]
    for thread in threads:
        thread.start()
    with suppress(AssertionError):  # on a busy machine few have ended by then
        enough = draw.randrange(2 * streams)
        until(lambda: sum(read.done for read in list(reads)) >= enough)
    time.sleep(draw.uniform(0, 0.3))
    server.kill()
    for thread in threads:
        thread.join()
    return [read for read in reads if read.request_id]


def compare(where: str, reads: list[Read], result: Result) -> None:
    """Compare what clients read with the ledger as the kill left it, before recovery."""
    columns = f"SELECT {COLUMNS} FROM requests"
    rows: dict[str, Any]
    if "://" in where:
        with psycopg.connect(where) as connection:
            rows = {row[0]: row[1:] for row in connection.execute(columns)}  # type: ignore[call-overload, unused-ignore]
    else:
        with closing(sqlite3.connect(where)) as database:
            rows = {row[0]: row[1:] for row in database.execute(columns)}
            result.damaged += database.execute("PRAGMA integrity_check").fetchall() != [("ok",)]
    for read in reads:
        state, prompt, cached, output = rows.get(read.request_id, ("none", 0, 0, 0))
        result.missing += max(0, len(read.text) - output)
        if read.done and read.usage:
            result.settled += 1
            told = (read.usage["prompt_tokens"], read.usage["prompt_tokens_details"]["cached_tokens"])
            result.wrong += (state, prompt, cached, output) != ("final", *told, read.usage["completion_tokens"])
        elif state == "open":
            result.cut += 1
            result.ahead = max(result.ahead, output - len(read.text))
