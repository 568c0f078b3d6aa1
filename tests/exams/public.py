"""`python -m tests.exams.public`: the faults of the public endpoint at full size, each with its figure and its bound.

Loopback only, in a folder that is removed afterwards; the exit code is 1 if a figure is beyond its bound.
"""

import argparse
import json
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from tests.exams.hostile import bodies, nginx, peers
from tests.exams.hostile.slow_bodies import slow_bodies
from tests.exams.row import Row
from tests.support.chat_client import STREAM, received, send
from tests.support.harness import KEY, rows
from tests.support.server_process import process
from tests.support.visitor import Visitor

DEADLINE = 5  # seconds for a head, in these runs


class Started(NamedTuple):
    """A server in a process of its own: its address and its process id."""

    url: str
    pid: int
    folder: Path


@contextmanager
def started(*settings: str, delay: float = 0.0) -> Iterator[Started]:
    """Start a server in a fresh folder."""
    with (
        tempfile.TemporaryDirectory(prefix="secateur-exam-") as name,
        process(Path(name), *settings, delay=delay) as at,
    ):
        yield Started(at.url, at.process.pid, Path(name))


def slow_connections(size: int) -> list[Row]:
    """Many connections that never end their head, beside ordinary requests."""
    with started(f"head_seconds={DEADLINE}", "max_waiting=64") as server:
        peers.seconds_of(server.url, 50)
        idle, before = peers.seconds_of(server.url, 300), peers.resident(server.pid)
        with peers.slow_heads(server.url, size) as connections:
            busy = peers.seconds_of(server.url, 300)
            more = peers.resident(server.pid) - before
            gone = peers.closed(connections, DEADLINE + 5)
    late = 1000 * (peers.percentile(busy, 0.99) - peers.percentile(idle, 0.99))
    name = f"{size} connections that send a head without end"
    return [
        Row(name, f"p99 of a request {late:+.0f} ms above idle", "under 100 ms", late < 100),
        Row(name, f"resident memory {more:+.1f} MB", "at most 20 MB", more <= 20),
        Row(name, f"{gone} closed by the deadline", str(size), gone == size),
    ]


def large_requests(_: int) -> list[Row]:
    """A header of 64 MB, and a body declared as 1 GB."""
    with started() as server:
        peers.seconds_of(server.url, 20)
        before = peers.resident(server.pid)
        header = peers.huge_header(server.url, 64 << 20)
        body = peers.huge_body(server.url, 1 << 30, 256 << 20)
        more = peers.resident(server.pid) - before
        alive = bool(peers.seconds_of(server.url, 5))
    refused = header[:13] in (b"", b"HTTP/1.1 400 ") and body[:13] in (b"", b"HTTP/1.1 413 ")
    return [
        Row("64 MB header, 1 GB body", f"{_status(header)}, {_status(body)}", "refused or cut", refused and alive),
        Row("64 MB header, 1 GB body", f"resident memory {more:+.1f} MB", "at most 20 MB", more <= 20),
    ]


def _status(answer: bytes) -> str:
    return answer[9:12].decode() or "cut"


def silent_readers(size: int) -> list[Row]:
    """Clients that request much and read nothing."""
    count = max(4, size // 50)
    with started("send_seconds=2") as server:
        assert peers.answers(server.url)  # what the first request opens stays open, and so does the loop itself
        before = peers.descriptors(server.pid)
        connections = [peers.never_read(server.url) for _ in range(count)]
        held = peers.descriptors(server.pid)
        left = peers.settle(lambda: peers.descriptors(server.pid) <= before, 20)
        for connection in connections:
            connection.close()
    figure = (
        f"{held - before} descriptors held, back after {left:.1f} s" if left is not None else "descriptors are left"
    )
    return [Row(f"{count} clients that stop reading", figure, "send deadline 2 s, at most 20 s", left is not None)]


def slow_bodies_without_a_key(size: int) -> list[Row]:
    """Ten times the limit of connections, each owing a body, beside probes and chats."""
    return slow_bodies(connections=size // 5)


def fuzzed_bodies(size: int) -> list[Row]:
    """Fuzzed bodies for each endpoint that reads one."""
    counts: dict[int, int] = {}
    with started("max_waiting=64") as server:
        for path in bodies.SEEDS:

            def headers(path: str = path) -> Mapping[str, str]:
                visitor = None if "chat" in path else Visitor.at(server.url)
                shown = {"Authorization": f"Bearer {visitor.token if visitor else KEY}"}
                return {**shown, "Origin": visitor.origin} if visitor else shown

            for status, number in bodies.fuzz(server.url, path, headers, 10 * size // len(bodies.SEEDS)).items():
                counts[status] = counts.get(status, 0) + number
        alive = bool(peers.seconds_of(server.url, 5))
        replies = bodies.rows(server.folder / "usage.sqlite3") - 5
    served, refused = counts.get(200, 0), sum(number for status, number in counts.items() if status >= 400)
    failed = sum(number for status, number in counts.items() if status >= 500)
    shown = ", ".join(f"{status}: {number}" for status, number in sorted(counts.items()))
    name = f"{sum(counts.values())} fuzzed bodies"
    return [
        Row(name, shown, "no 5xx, engine alive", failed == 0 and alive and refused > 0),
        Row(name, f"{replies} ledger rows for {served} answers of 200", "none for a refused one", replies <= served),
    ]


def termination(_: int) -> list[Row]:
    """SIGTERM during 32 streams: once with time to finish, once without."""
    findings = []
    for seconds, what in ((30, "with time to end"), (1, "beyond the deadline")):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            with process(folder, "slots=32", f"drain_seconds={seconds}", delay=0.1) as server:
                with ThreadPoolExecutor(32) as pool:
                    connections = [send(server.url, STREAM) for _ in range(32)]
                    for connection in connections:
                        assert connection.recv(1) == b"H"
                    server.process.send_signal(signal.SIGTERM)
                    read = list(pool.map(_events, connections))
                code = server.process.wait(30)
            ended = sum(bool(events) and events[-1] == "[DONE]" and "usage" in events[-2] for events in read)
            open_rows = sum(row["state"] == "open" for row in rows(folder / "usage.sqlite3"))
        figure = f"{ended} of 32 ended with usage, {open_rows} rows open, exit {code}"
        holds = ended == 32 and open_rows == 0 and code == 0
        findings.append(Row(f"SIGTERM with 32 live streams, {what}", figure, "32, 0 and 0", holds))
    return findings


def _events(connection: Any) -> list[Any]:
    """The events received, or none if the connection was reset."""
    try:
        return received(connection)[1]
    except (OSError, ValueError):
        return []


def behind_nginx(_: int) -> list[Row]:
    """The first event through nginx with its default settings, beside the direct one."""
    with started(delay=0.02) as server, nginx.proxy(server.url) as proxied:
        direct, through = nginx.first_events(server.url, 30), nginx.first_events(proxied, 30)
    late = 1000 * (peers.percentile(through, 0.5) - peers.percentile(direct, 0.5))
    return [Row("nginx in front, default settings", f"first event {late:+.1f} ms", "within 50 ms", late < 50)]


FAULTS: Mapping[str, Callable[[int], list[Row]]] = {
    "slow": slow_connections,
    "large": large_requests,
    "silent": silent_readers,
    "bodies": slow_bodies_without_a_key,
    "fuzz": fuzzed_bodies,
    "sigterm": termination,
    "nginx": behind_nginx,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the named faults, or all; returns 1 if a bound is exceeded."""
    parser = argparse.ArgumentParser(prog="python -m tests.exams.public", description=__doc__)
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=f"of {', '.join(FAULTS)}")
    parser.add_argument("--size", type=int, default=1000, help="connections; bodies are ten times as many")
    parser.add_argument("--json", action="store_true", help="one object a line instead of a table")
    arguments = parser.parse_args(argv)
    failed = 0
    for name in arguments.names or FAULTS:
        begun = time.monotonic()
        for finding in FAULTS[name](arguments.size):
            failed += not finding.held
            mark = "holds" if finding.held else "FAILS"
            shown = json.dumps(finding._asdict()) if arguments.json else f"{mark}  {' | '.join(finding[:3])}"
            print(shown, flush=True)
        print(f"       {name} took {time.monotonic() - begun:.0f} s", file=sys.stderr)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
