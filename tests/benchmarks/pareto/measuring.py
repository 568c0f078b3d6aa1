"""Measures what the results lack: quality of each candidate on its own, speed of all in turns."""

import argparse
import hashlib
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec

from pruning.evaluation.tasks.reading import read_task
from pruning.evaluation.tasks.task import PairsTask
from pruning.model.weights import parameters
from pruning.recipe.recipe import read
from server.artifact.checkpoint.reader import Artifact
from tests.benchmarks.pareto import quality, results, texts
from tests.benchmarks.pareto.bases import source_of
from tests.benchmarks.pareto.llama import LlamaScorer, file_of
from tests.benchmarks.pareto.making import Workplace, digest
from tests.benchmarks.pareto.plan import Candidate, ParetoPlan
from tests.benchmarks.pareto.results import Measured, Quality, Rounds
from tests.benchmarks.peers.__main__ import PROMPT, SLOTS
from tests.benchmarks.peers.field import PEERS, RACERS, Racer
from tests.benchmarks.peers.native_llama import NativeLlama

logger = logging.getLogger(__name__)

FAQS, LLAMA = Path("build/faq"), Path("build/peers/llama.cpp")
BATCHES = {1: 256, 8: 96, 16: 64}
"""Streams at once, and the new tokens of each: half a second or more, so that noise averages out."""
LONG, FIRST = 512, 128
"""Tokens of the prompt that is timed alone, and of the one whose first token is waited for."""


def measure_quality(plan: ParetoPlan, arguments: argparse.Namespace) -> None:
    """Make and score every chosen candidate that the results lack, and keep each at once."""
    texts.prepare(arguments.work / "texts", FAQS)
    place = Workplace(arguments.work, arguments.base_cache)
    windows = {text.name: texts.windows_of(text) for text in plan.texts}
    for candidate in chosen(plan, arguments.only):
        done = {row.key: row.made_of for row in results.read(arguments.results).rows}
        made_of = identity(plan, candidate, place)
        if done.get(candidate.key) == made_of and not arguments.again:
            continue
        print(candidate.key, file=sys.stderr)
        row = _measured(plan, candidate, place, windows)
        sizes = {name: {"bytes": sum(len(w.encode()) for w in each)} for name, each in windows.items()}
        counts = quality.tokens(windows, place.base(plan, candidate))
        found = results.read(arguments.results)  # anew: another process may have written meanwhile
        known = {name: found.texts.get(name, {}) | sizes[name] | {candidate.base: counts[name]} for name in sizes}
        results.write(arguments.results, msgspec.structs.replace(found, texts=known).with_row(row))


def measure_speed(plan: ParetoPlan, arguments: argparse.Namespace) -> None:
    """Race all chosen candidates that are scored, in turns on one core; each event's rounds go into the results."""
    place = Workplace(arguments.work, arguments.base_cache)
    scored = {row.key for row in results.read(arguments.results).rows}
    racing = [one for one in chosen(plan, arguments.only) if one.raced and one.key in scored]
    rounds: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        racers = {one.key: stack.enter_context(_racer(plan, one, place, arguments.core)) for one in racing}
        for number in range(arguments.rounds + 1):
            for key, racer in racers.items():
                print(f"round {number} of {arguments.rounds}: {key}", file=sys.stderr)
                for event, figure in _events(racer, arguments.cpu):
                    if number:  # the first warms caches up
                        rounds.setdefault(key, {}).setdefault(event, []).append(round(figure, 5))
    found = results.read(arguments.results)
    for row in found.rows:
        if row.key in rounds:
            speed: Rounds = {event: tuple(runs) for event, runs in rounds[row.key].items()}
            unit = "CPU seconds" if arguments.cpu else "seconds"
            found = found.with_row(msgspec.structs.replace(row, speed=speed, unit=unit))
    results.write(arguments.results, msgspec.structs.replace(found, machine=machine()))


def chosen(plan: ParetoPlan, only: Sequence[str]) -> list[Candidate]:
    """The candidates whose key contains one of `only`, or all."""
    return [one for one in plan.candidates if not only or any(text in one.key for text in only)]


def identity(plan: ParetoPlan, candidate: Candidate, place: Workplace) -> str:
    """What a candidate is made of: the digest of its recipe, of its base, or of its kind of file."""
    if candidate.recipe:
        return digest(read(Path(candidate.recipe)))
    if candidate.stages:
        return digest(place.recipe(plan, candidate))
    return hashlib.sha256(f"{plan.base(candidate).source} {candidate.engine} {candidate.file}".encode()).hexdigest()


def machine() -> str:
    """The processor's name."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")


def _measured(plan: ParetoPlan, candidate: Candidate, place: Workplace, windows: quality.Windows) -> Measured:
    """One candidate's row, without speed."""
    task = read_task(Path(plan.task))
    assert isinstance(task, PairsTask), "the plan's task is one of pairs"
    base = place.base(plan, candidate)
    made_of = identity(plan, candidate, place)
    if candidate.engine == "secateur":
        artifact = place.artifact(plan, candidate)
        found, size = quality.by_runner(artifact, base, windows, task), artifact.size
    else:
        artifact, (found, size) = base, _peer(plan, candidate, place, windows, task)
    steps = artifact.lineage.steps
    return Measured(
        base=candidate.base,
        name=candidate.name,
        kind=candidate.kind,
        bits=candidate.bits,
        engine=candidate.engine,
        made_of=made_of,
        bytes=size,
        parameters=steps[-1].parameters if steps else parameters(artifact)[0],
        minutes=round(sum(step.seconds for step in steps) / 60, 1),
        trained=sum(step.recovery.tokens for step in steps if step.recovery),
        quality=found,
    )


def _peer(
    plan: ParetoPlan, candidate: Candidate, place: Workplace, windows: quality.Windows, task: PairsTask
) -> tuple[Quality, int]:
    """Quality and bytes of a peer's file."""
    llama, base = NativeLlama(LLAMA).build(), place.base(plan, candidate)
    file = _file(plan, candidate, place, llama)
    with LlamaScorer(llama.program, file) as scorer:
        return quality.by_llama(scorer, base, windows, task, candidate.name), file.stat().st_size


def _file(plan: ParetoPlan, candidate: Candidate, place: Workplace, llama: NativeLlama) -> Path:
    """A peer's model file."""
    text = place.work / "texts" / "recovery.txt"
    if not text.exists():
        text.write_text("\n\n".join(_bodies(place.work / "texts" / "recovery.jsonl")))
    found = source_of(plan.base(candidate), place.work, place.cache)
    return file_of(llama, place.base(plan, candidate), candidate.file, text, found)


def _bodies(path: Path) -> Iterator[str]:
    for line in path.read_text().splitlines():
        yield msgspec.json.decode(line)["text"]


def _racer(plan: ParetoPlan, candidate: Candidate, place: Workplace, core: str) -> Racer:
    """The process that runs a candidate."""
    sizes = ("1", str(SLOTS), str(LONG + FIRST))
    if candidate.engine == "secateur":
        artifact: Artifact = place.artifact(plan, candidate)
        command = [sys.executable, RACERS / "secateur_racer.py", artifact.path, *sizes]
    else:
        llama = NativeLlama(LLAMA).build()
        file = _file(plan, candidate, place, llama)
        if candidate.engine == "llama.cpp":
            command = [sys.executable, RACERS / "llama_cpp_racer.py", file, *sizes, llama.program]
        else:
            peer = next(peer for peer in PEERS if peer.name == candidate.engine)
            python = peer.install(Path("build/peers").resolve())
            command = [python, RACERS / peer.script, file, *sizes]
    log = place.work / "logs" / f"{candidate.key.replace('/', ' ')}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return Racer(candidate.key, [str(part) for part in command], core, log)


def _events(racer: Racer, cpu: bool) -> Iterator[tuple[str, float]]:
    """Tokens a second of decoding at each batch and of a long prompt; milliseconds until the first token."""
    for batch, tokens in BATCHES.items():
        first = racer.seconds(batch=batch, prompt=PROMPT, tokens=1, cpu=cpu)
        whole = racer.seconds(batch=batch, prompt=PROMPT, tokens=tokens + 1, cpu=cpu)
        yield f"batch {batch}", batch * tokens / max(whole - first, 1e-9)
    yield f"prompt {LONG}", LONG / racer.seconds(batch=1, prompt=LONG, tokens=1, cpu=cpu)
    yield f"first of {FIRST}", 1000 * racer.seconds(batch=1, prompt=FIRST, tokens=1, cpu=cpu)
