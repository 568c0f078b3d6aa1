"""Speed of two threads while another process occupies the last core; a fair share is three quarters.

This engine and llama.cpp, without HTTP, decode one stream with a thread for each core, in turns.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from tests.benchmarks.peers.field import PEERS, RACERS, Racer, count
from tests.benchmarks.serving.figures import ratio
from tests.benchmarks.serving.options import Options
from tests.benchmarks.serving.report import Line

TOKENS, PROMPT = 64, 16
FLOOR = 0.6


def measure(options: Options) -> list[Line]:
    """One report line for each racer."""
    threads = str(count(options.cores))
    peer = next(peer for peer in PEERS if peer.name == "xllamacpp")
    commands = {
        f"secateur, {options.artifact.name}": [
            sys.executable, RACERS / "secateur_racer.py", options.artifact.resolve(), threads
        ],
        "llama.cpp": [peer.install(options.peers.resolve()), RACERS / peer.script, options.gguf, threads, 16],
    }  # fmt: skip
    options.work.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        racers = [
            stack.enter_context(
                Racer(name, [str(part) for part in command], options.cores, options.work / f"racer-{number}.log")
            )
            for number, (name, command) in enumerate(commands.items())
        ]
        beside: dict[str, list[float]] = {racer.name: [] for racer in racers}
        quiet: dict[str, list[float]] = {racer.name: [] for racer in racers}
        for number in range(options.rounds + 1):
            for racer in racers:
                alone = rate(racer)
                with busy(options.cores):
                    crowded = rate(racer)
                if number:
                    quiet[racer.name].append(alone)
                    beside[racer.name].append(crowded)
                    options.say(f"round {number}: {racer.name}: {crowded:.0f} beside a neighbour, {alone:.0f} without")
    title = f"{threads} threads, one stream, tokens/s: beside a busy process on one core / without"
    return [
        Line(f"{title}: {name}", beside[name], quiet[name], ratio(beside[name], quiet[name]), FLOOR) for name in beside
    ]


def rate(racer: Racer) -> float:
    """Decoded tokens a second of one stream, its prefill excluded."""
    first = racer.seconds(batch=1, prompt=PROMPT, tokens=1)
    return TOKENS / max(racer.seconds(batch=1, prompt=PROMPT, tokens=TOKENS + 1) - first, 1e-9)


@contextmanager
def busy(cores: str) -> Iterator[None]:
    """Run a process that never sleeps on the last core."""
    last = cores.split("-")[-1]
    process = subprocess.Popen(["taskset", "--cpu-list", last, sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()
