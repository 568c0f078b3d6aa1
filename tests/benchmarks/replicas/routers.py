"""`make bench-routers`: TTFT on three servers behind nginx, by round robin and by the hash of the skill, cold and warm.

Each round asks skills that nobody asked before, in random order and one at a time, so that a prompt's prefill is all
that differs. One setting holds all skills in each prefix cache, the other only the share of one replica.
"""

import argparse
import asyncio
import os
import random
import sqlite3
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from tests.benchmarks.serving.figures import percentile
from tests.benchmarks.serving.loads.load import Target, Timing, reply
from tests.benchmarks.serving.loads.prompts import questions, system
from tests.benchmarks.serving.servers import KEY, Setting, ours
from tests.exams.hostile.nginx import free_port, running

REPLICAS, CONTEXT, TOKENS = 3, 2048, 2
POLICIES = {"round robin": "", "hash of the skill": "hash $http_x_session_id consistent;"}
BALANCED = """upstream by_{port} {{ {policy} {servers} }}
  server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass http://by_{port}; proxy_buffering off; }} }}
"""
SLOTS = (8, 2)
"""A cache has room for a context of each slot, and for one of skills' own prompts."""
HEAD = (
    "| prefix cache of a replica | router: skills by replica | requests | cold "
    "| TTFT of a cold one, ms | of a warm one | p50 of all | p95 | mean |\n|---|---|---|---|---|---|---|---|---|"
)


class Load(NamedTuple):
    """What is asked in a round of a policy."""

    skills: int
    asked: int
    """Questions to each skill."""
    words: int
    """Words of a skill's prompt."""

    def order(self, names: Sequence[str], seed: int) -> list[str]:
        """All questions' skills in random order."""
        drawn = list(names) * self.asked
        random.Random(seed).shuffle(drawn)
        return drawn


def names_of(policy: int, number: int, load: Load) -> list[str]:
    """The skills of one round of a policy."""
    return [f"skill-{policy}-{number}-{index}" for index in range(load.skills)]


async def asked(port: int, skills: Sequence[str], seed: int) -> list[Timing]:
    """Ask one question after another, each with its skill's name in `x-session-id`."""
    texts = questions(seed)
    return [await reply(Target(port, name, KEY, session=name), next(texts), TOKENS) for name in skills]


def is_cold(timing: Timing) -> bool:
    """Whether the skill's prompt, nearly all of the tokens, was computed."""
    return timing.cached < timing.prompt / 2


def row(head: Sequence[str], timings: Sequence[Timing]) -> str:
    """A line of the table, in milliseconds."""
    cold = [1000 * timing.first_token for timing in timings if is_cold(timing)]
    warm = [1000 * timing.first_token for timing in timings if not is_cold(timing)]
    middle = [f"{statistics.median(values):.0f}" if values else "-" for values in (cold, warm)]
    every = [*cold, *warm]
    last = [f"{value:.0f}" for value in (percentile(every, 50), percentile(every, 95), statistics.mean(every))]
    return f"| {' | '.join([*head, str(len(timings)), str(len(cold)), *middle, *last])} |"


def shared_out(ledgers: Sequence[Path], policy: int) -> list[int]:
    """How many of a policy's skills each replica answered for."""
    found = []
    for ledger in ledgers:
        with closing(sqlite3.connect(ledger)) as database:
            statement = "SELECT count(DISTINCT skill) FROM requests WHERE skill LIKE ?"
            [(count,)] = database.execute(statement, (f"skill-{policy}-%",))
        found.append(count)
    return found


class Fleet(NamedTuple):
    """The router's port of each policy, and each replica's ledger."""

    ports: list[int]
    ledgers: list[Path]


@contextmanager
def routers(artifact: Path, slots: int, skills: dict[str, str]) -> Iterator[Fleet]:
    """Three servers of one thread each behind an nginx."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings = [Setting(artifact, cores, folder / str(n), slots=slots, context=CONTEXT) for n in range(REPLICAS)]
        targets = [stack.enter_context(ours(setting, skills)) for setting in settings]
        servers = " ".join(f"server 127.0.0.1:{target.port};" for target in targets)
        ports = [free_port() for _ in POLICIES]
        blocks = [
            BALANCED.format(port=port, policy=policy, servers=servers)
            for port, policy in zip(ports, POLICIES.values(), strict=True)
        ]
        stack.enter_context(running("".join(blocks), ports[0]))
        yield Fleet(ports, [setting.folder / "usage.sqlite3" for setting in settings])


def main() -> None:
    """Ask in turns by each policy; prints a table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("artifact", type=Path)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--skills", type=int, default=12)
    options.add_argument("--asked", type=int, default=8, help="questions to each skill in a round")
    options.add_argument("--words", type=int, default=850, help="of a skill's prompt")
    given = options.parse_args()
    load = Load(given.skills, given.asked, given.words)
    rounds = range(given.rounds)
    names = [name for policy in range(len(POLICIES)) for number in rounds for name in names_of(policy, number, load)]
    skills = {name: system(load.words, name) for name in names}
    print(HEAD)
    for slots in SLOTS:
        found: list[list[Timing]] = [[] for _ in POLICIES]
        with routers(given.artifact, slots, skills) as fleet:
            for number in rounds:
                for policy, port in enumerate(fleet.ports):
                    order = load.order(names_of(policy, number, load), number)
                    found[policy] += asyncio.run(asked(port, order, number))
            shares = [shared_out(fleet.ledgers, policy) for policy in range(len(POLICIES))]
        prompt = statistics.median(timing.prompt for timings in found for timing in timings)
        room = f"{(slots + 1) * CONTEXT} tokens, {load.skills} skills of {prompt:.0f}"
        for name, timings, counts in zip(POLICIES, found, shares, strict=True):
            print(row([room, f"{name}: {counts} of {len(names) // len(POLICIES)}"], timings), flush=True)


if __name__ == "__main__":
    main()
