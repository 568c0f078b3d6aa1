"""`make exam-replicas`: three replicas and one PostgreSQL behind nginx or vllm-router, all killed in turn.

Thirty visitors talk throughout. Prints a line for each finding and returns 1 if one is beyond its bound.
"""

import argparse
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import psycopg

from server.metering.ledger.connection import snapshot
from server.metering.reconcile import differences
from tests.exams.row import Row, show
from tests.exams.servers.replicas.processes import Process, nginx, replica, vllm_router
from tests.exams.servers.replicas.talking import Reply, Talker
from tests.support.postgres_server import new_database, running
from tests.support.tiny_llama import tiny_llama

REPLICAS, VISITORS = 3, 30
DOWN_SECONDS = 2.0
RECOVERY_SECONDS = 180.0
"""A replica that never comes back is taken for dead within two minutes."""
ENDS = ("stop", "length")
Rows = dict[str, tuple[str, str, int]]
"""Request id -> state, outcome and output tokens."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the exam with each router; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.exams.servers.replicas", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600, help="of killing, shared by the routers (default: 600)")
    parser.add_argument("--every", type=float, default=10, help="seconds between kills (default: 10)")
    parser.add_argument("--router", action="append", choices=("vllm-router", "nginx"), help="only this one")
    parser.add_argument("--work", type=Path, default=Path("build/cluster"), help="the environment of vllm-router")
    wanted = parser.parse_args(argv)
    routers = wanted.router or ["nginx"]  # vllm-router 0.1.17 drops the header Origin, which the widget needs
    code = 0
    with running() as postgres:
        if postgres is None:
            print("PostgreSQL is not installed: tests/install does it", file=sys.stderr)
            return 2
        for name in routers:
            if name == "nginx" and shutil.which("nginx") is None:
                print("nginx is not installed: tests/install does it", file=sys.stderr)
                return 2
            with tempfile.TemporaryDirectory(prefix="secateur-replicas-") as folder, ExitStack() as stack:
                make = nginx if name == "nginx" else lambda at, urls: vllm_router(at, urls, wanted.work / "router")
                fleet = Fleet(Path(folder), new_database(postgres), make, stack)
                code |= show(talked(fleet, name, wanted.seconds / len(routers), wanted.every))
    return code


class Fleet:
    """Replicas behind a router; everything is killed when `stack` ends."""

    def __init__(
        self, folder: Path, ledger: str, make: Callable[[Path, Sequence[str]], Process], stack: ExitStack
    ) -> None:
        self.ledger = ledger
        model = tiny_llama(folder / "tiny")
        self.replicas = [replica(folder, number, model, ledger) for number in range(REPLICAS)]
        for one in self.replicas:
            stack.callback(one.kill)
            one.start()
        for one in self.replicas:
            one.wait("/readyz")
        self.router = make(folder, [one.url for one in self.replicas])
        stack.callback(self.router.kill)
        self.router.start()
        self.router.wait("/readyz" if self.router.name == "nginx" else "/health")

    @property
    def processes(self) -> Iterator[Process]:
        """All of them in turn, for ever."""
        return cycle([*self.replicas, self.router])


def talked(fleet: Fleet, router: str, seconds: float, every: float) -> Iterator[Row]:
    """Kill in turn for `seconds` while visitors talk; compares what they saw with the ledger."""
    over = threading.Event()
    talkers = [Talker(fleet.router.url, number, over) for number in range(VISITORS)]
    for one in talkers:
        one.start()
    kills, deadline = 0, time.monotonic() + seconds
    for process in fleet.processes:
        time.sleep(every - DOWN_SECONDS)
        if time.monotonic() > deadline:
            break
        process.kill()
        kills += 1
        time.sleep(DOWN_SECONDS)
        process.start()
    for process in [*fleet.replicas, fleet.router]:
        process.wait("/readyz" if process.name != "vllm-router" else "/health")
    last, grace = time.monotonic(), time.monotonic() + 60
    while not all(one.problem or one.answered[-1:] > [last] for one in talkers) and time.monotonic() < grace:
        time.sleep(0.5)
    over.set()
    for one in talkers:
        one.join(120)
    rows = settled(fleet.ledger)
    yield from findings(router, kills, talkers, rows, last)
    with snapshot(fleet.ledger) as database:
        found = differences(database)
    yield Row(f"{router}: reconcile", "; ".join(found[:2]) or "no difference", "no difference", not found)


def findings(router: str, kills: int, talkers: Sequence[Talker], rows: Rows, last: float) -> Iterator[Row]:
    """The rows of the table."""
    replies = [reply for one in talkers for reply in one.replies.values()]
    known = [reply for reply in replies if reply.request_id]
    cut = [reply for reply in replies if reply.finish == "interrupted"]
    problems = [one.problem for one in talkers if one.problem]
    yield Row(f"{router}: {kills} kills", f"{len(replies)} replies, {len(cut)} interrupted", "some of both", bool(cut))
    yield Row(f"{router}: what no visitor may see", "; ".join(problems[:2]) or "nothing", "nothing", not problems)
    on = sum(one.answered[-1:] > [last] for one in talkers)
    yield Row(f"{router}: conversations that went on", f"{on} of {len(talkers)}", "all", on == len(talkers))
    renewed = sum(one.renewed for one in talkers)
    yield Row(f"{router}: sessions refreshed when they expired", str(renewed), "told", True)
    missing = [reply.id for reply in known if reply.request_id not in rows]
    yield Row(f"{router}: replies without a row", f"{len(missing)} of {len(known)}", "0", not missing)
    ended = [reply for reply in known if reply.tokens is not None]
    wrong = [reply.id for reply in ended if rows.get(reply.request_id, ("", "", -1))[2] != reply.tokens]
    yield Row(f"{router}: charged other than their usage", f"{len(wrong)} of {len(ended)}", "0", not wrong)
    cut_off = [(one.pieces, rows.get(one.request_id, ("no row", "", -1))) for one in known if one.tokens is None]
    less = [(pieces, row) for pieces, row in cut_off if row[2] < pieces]
    shown = f"{len(less)} of {len(cut_off)}{''.join(f'; {pieces} pieces, {row}' for pieces, row in less[:3])}"
    yield Row(f"{router}: cut replies charged less than delivered", shown, "0", not less)
    yield _finished(router, replies, rows)
    firsts = sorted(reply.first for reply in replies if reply.first)
    median = firsts[len(firsts) // 2] if firsts else 0.0
    yield Row(f"{router}: TTFT, median", f"{median * 1000:.0f} ms", "told", True)


def _finished(router: str, replies: Sequence[Reply], rows: Rows) -> Row:
    """Rows of whole replies beside what visitors saw; a kill just after the settlement leaves the text without its end.

    A visitor may also meet such a reply only in the conversation, without the id of its request.
    """
    done = {request for request, (_, outcome, _) in rows.items() if outcome in ENDS}
    whole = [reply for reply in replies if reply.finish in ENDS]
    cut = [reply for reply in replies if reply.finish not in ENDS and reply.request_id in done]
    nameless = sum(reply.finish not in ENDS and not reply.request_id for reply in replies)
    good = 0 <= len(done) - len(whole) - len(cut) <= nameless
    good = good and all(reply.request_id in done for reply in whole if reply.request_id)
    shown = f"{len(done)} rows; replies: {len(whole)} whole, {len(cut)} cut just before their end"
    return Row(f"{router}: finished rows beside replies", shown, "equal", good)


def settled(ledger: str) -> Rows:
    """All rows, once none is open."""
    deadline, rows = time.monotonic() + RECOVERY_SECONDS, dict[str, Any]()
    while time.monotonic() < deadline:
        with psycopg.connect(ledger) as database:
            found = database.execute("SELECT request_id, state, outcome, output_tokens FROM requests").fetchall()
        rows = {name: (state, outcome or "", tokens) for name, state, outcome, tokens in found}
        if all(state != "open" for state, *_ in rows.values()):
            break
        time.sleep(1)
    return rows


if __name__ == "__main__":
    sys.exit(main())
