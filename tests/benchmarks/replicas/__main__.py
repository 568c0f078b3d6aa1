"""`make bench-replicas`: measures one server, replays requests on three, and simulates three and twenty with its costs.

The servers share this machine's cores, which the simulation of three takes into account; that of twenty has as many
machines. Run it on a machine that does nothing else.
"""

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx2 as httpx

from tests.benchmarks.replicas.simulation import (
    Answered,
    Arrival,
    Choose,
    Costs,
    Limits,
    in_turns,
    least_loaded,
    poisson,
    simulate,
)
from tests.benchmarks.serving.figures import percentile
from tests.benchmarks.serving.loads.load import Target
from tests.benchmarks.serving.servers import Setting, ours

SKILLS = {"help": "You are a helpful assistant. Answer in a few sentences, in plain words."}
QUESTION = "Tell me a story about the number {number}, with a beginning, a middle and an end."
STREAMS = (1, 2, 4, 8)
TOKENS = 48
SHARES = (0.3, 0.6, 0.8)
"""Of what all replicas can answer."""


def ask(target: Target, number: int, tokens: int) -> list[float]:
    """Seconds from the request to each chunk with text."""
    started, moments = time.monotonic(), list[float]()
    body = {"model": target.model, "stream": True, "max_tokens": tokens, "min_tokens": tokens, "temperature": 0,
            "messages": [{"role": "user", "content": QUESTION.format(number=number)}]}  # fmt: skip
    headers = {"Authorization": f"Bearer {target.key}"}
    url = f"http://127.0.0.1:{target.port}/v1/chat/completions"
    with httpx.stream("POST", url, json=body, headers=headers, timeout=600) as answer:
        answer.raise_for_status()
        for line in answer.iter_lines():
            if line.startswith("data: {") and '"content"' in line:
                moments.append(time.monotonic() - started)
    return moments


def together(target: Target, streams: int) -> list[list[float]]:
    """Ask `streams` questions at once."""
    found: list[list[float]] = []
    threads = [threading.Thread(target=lambda n=n: found.append(ask(target, n, TOKENS))) for n in range(streams)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return found


def measure(target: Target) -> Costs:
    """The costs of a server that has answered before: medians of the first token alone and of the gaps by streams."""
    together(target, 1)
    steps = {}
    for streams in STREAMS:
        replies = [reply for _ in range(2) for reply in together(target, streams)]
        ends = [(reply[-1] - reply[len(reply) // 2]) / (len(reply) - 1 - len(reply) // 2) for reply in replies]
        steps[streams] = statistics.median(ends)
    return Costs(statistics.median(ask(target, 100 + n, 2)[0] for n in range(7)), steps)


def capacity(costs: Costs, replicas: float, slots: int = 8) -> float:
    """Requests a second that `replicas` can answer with full slots."""
    return replicas / (costs.first + TOKENS * costs.step(slots) / slots)


def replay(targets: Sequence[Target], arrivals: Sequence[Arrival]) -> list[Answered]:
    """Send the requests in turns to the servers at their moments."""
    found = [Answered(0.0, 0.0)] * len(arrivals)

    def one(number: int, arrival: Arrival) -> None:
        moments = ask(targets[in_turns([0] * len(targets), number)], number, arrival.tokens)
        found[number] = Answered(moments[0], moments[-1])

    started = time.monotonic()
    threads = []
    for number, arrival in enumerate(arrivals):
        time.sleep(max(0.0, arrival.moment - (time.monotonic() - started)))
        threads.append(threading.Thread(target=one, args=(number, arrival)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    return found


def line(name: str, answered: Sequence[Answered]) -> str:
    """A row of the table: the number of requests, and medians and 95th percentiles in milliseconds."""
    cells = [name, str(len(answered))]
    for values in ([a.first for a in answered], [a.last for a in answered]):
        cells += [f"{1000 * percentile(values, percent):.0f}" for percent in (50, 95)]
    return f"| {' | '.join(cells)} |"


@contextmanager
def servers(artifact: Path, count: int) -> Iterator[list[Target]]:
    """Real servers of one thread each, all on the cores of this process."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        yield [stack.enter_context(ours(Setting(artifact, cores, folder / str(n)), SKILLS)) for n in range(count)]


def main() -> None:
    """Measure, replay and simulate; prints a table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("artifact", type=Path)
    options.add_argument("--seconds", type=float, default=40.0, help="of each load")
    arguments = options.parse_args()
    cores = len(os.sched_getaffinity(0))
    shared = Limits(cores=cores)
    with servers(arguments.artifact, 3) as targets:
        costs = measure(targets[0])
        steps = ", ".join(f"{1000 * s:.1f} ms with {n}" for n, s in costs.steps.items())
        print(f"one server: first token {1000 * costs.first:.0f} ms; a step {steps}; {TOKENS} tokens a reply\n")
        print("| | requests | TTFT p50, ms | p95 | whole reply p50, ms | p95 |\n|---|---|---|---|---|---|")
        for share in SHARES:
            rate = share * capacity(costs, min(3, cores))
            arrivals = poisson(rate, arguments.seconds, TOKENS, seed=1)
            name = f"3 on {cores} cores, {rate:.2f} requests/s"
            print(line(f"{name}, real", replay(targets, arrivals)), flush=True)
            print(line(f"{name}, simulated", simulate(costs, arrivals, 3, in_turns, shared)), flush=True)
    ways: dict[str, Choose] = {"in turns": in_turns, "least loaded": least_loaded}
    for share in SHARES:
        rate = share * capacity(costs, 20)
        for way, choose in ways.items():
            arrivals = poisson(rate, 600, TOKENS, seed=2)
            print(
                line(f"20, {rate:.1f} requests/s, {way}, simulated", simulate(costs, arrivals, 20, choose)), flush=True
            )


if __name__ == "__main__":
    main()
