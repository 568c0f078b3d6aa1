"""`python -m tests.exams.hostile.knowledge.leaks`: asks a real server for documents of a group from outside it.

Each hidden document has the canary in its title, heading, text and address. The model repeats the words of hidden
documents, so that a citation of one would show. A try leaks if the canary is in a response, or in a prompt that the
model has read for it.
"""

import itertools
import random
import statistics
import string
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy
from msgspec.structs import replace

from server.knowledge import settings
from server.knowledge.build.building import build
from server.knowledge.search import Knowledge
from server.skills import api_keys
from server.skills.identity import Identity
from tests.exams.hostile.knowledge.attacker import CANARY, SECRET, Attacker, Try, tries
from tests.exams.row import Row, show
from tests.support.fakes import Listening
from tests.support.harness import HELP, parts, served, tokenizer

TRIES = 1000
PAIRS = 400
DOCUMENTS = 24
RESAMPLES, CONFIDENCE = 2000, 0.99
SHARE = 5  # a difference below a fifth of a search counts as none
MANY = 1_000_000


def rows(count: int = TRIES, pairs: int = PAIRS) -> list[Row]:
    """Try `count` times, and compare `pairs` of searches."""
    with tempfile.TemporaryDirectory(prefix="secateur-exam-") as name:
        folder = Path(name)
        hidden, nowhere = words(), words()
        library = made(folder, hidden)
        with attacked(folder, library, hidden) as attacker:
            found = [outcome(attacker, one) for one in itertools.islice(tries(attacker), count)]
            control = [outcome(attacker, one) for one in attacker.members()]
            cached = attacker.cached()
        timing = list(timed(Knowledge.open(library), hidden, nowhere, pairs))
    leaks = Counter(kind for kind, leaked, _ in found if leaked)
    kinds = Counter(kind for kind, _, _ in found)
    answered = Counter(status for _, _, status in found)
    statuses = ", ".join(f"{status}: {number}" for status, number in sorted(answered.items()))
    seen = sum(leaked for _, leaked, _ in control)
    return [
        Row("control: who is in the group", f"{seen} of {len(control)} see it", "all", seen == len(control)),
        Row("others' tries", f"{leaks.total()} leaks of {len(found)}, {len(kinds)} kinds", "0", not leaks),
        *(Row(f"leaks: {kind}", str(number), "0", held=False) for kind, number in leaks.items()),
        Row("answers", statuses, "some 200, no 500", answered[200] > 0 and max(answered) < 500),
        Row(
            "cached tokens of a member's prompt",
            "{} if guessed, {} if not, {} for the member".format(*cached),
            "the same two, fewer than the member's",
            cached[0] == cached[1] < cached[2],
        ),
        *timing,
    ]


def outcome(attacker: Attacker, one: Try) -> tuple[str, bool, int]:
    """A try's kind, whether it leaked, and its status."""
    attacker.forget()
    status, answer = one.send()
    return one.kind, CANARY in answer.lower() or attacker.prompted(), status


def words() -> list[str]:
    """Four made-up words for each document."""
    letters = random.SystemRandom()
    return [" ".join("".join(letters.choices(string.ascii_lowercase, k=8)) for _ in range(4)) for _ in range(DOCUMENTS)]


def made(folder: Path, hidden: Sequence[str]) -> Path:
    """Build a knowledge of public documents and those of the group `staff`, which have the words `hidden`."""
    for name in ("public", "inner"):
        (folder / name).mkdir()
    for n, (own, shown) in enumerate(zip(hidden, words(), strict=True)):
        (folder / "inner" / f"{CANARY}-{n}.md").write_text(f"# {own} {CANARY}\n\nThe code of {own} is {CANARY} {n}.\n")
        (folder / "public" / f"page-{n}.md").write_text(f"# About {shown}\n\nHere is a line about {shown}.\n")
    file = folder / "knowledge.toml"
    file.write_text(
        'name = "library"\n[[sources]]\npath = "public"\nurl = "https://library.example/{name}"\n'
        '[[sources]]\npath = "inner"\ngroups = ["staff"]\nurl = "https://library.example/inner/{name}"\n'
    )
    build(settings.read(file), folder, folder / "library", shown=False)
    return folder / "library"


@contextmanager
def attacked(folder: Path, library: Path, hidden: Sequence[str]) -> Iterator[Attacker]:
    """A server of the knowledge, with keys of three kinds and visitors."""
    keys = {
        name: api_keys.create(folder / "keys.json", ["help"], name, groups=groups)[0]
        for name, groups in (("member", ("staff",)), ("board", ("board",)), ("nobody", ()))
    }
    skill = replace(
        HELP,
        knowledge=str(library),
        identity=Identity("HS256", SECRET),
        max_tokens=48,
        **dict.fromkeys(
            (
                "sessions_per_minute",
                "address_requests_per_minute",
                "visitor_requests_per_minute",
                "requests_per_minute",
            ),
            MANY,
        ),
    )
    read = tokenizer(folder / "tiny")
    runner = Listening([*read.encode(f"The code of {hidden[0]} is"), next(iter(read.stop_ids))], read.vocabulary)
    with served(parts(folder, runner, [skill], context=4096, keys=folder / "keys.json"), runner) as server:
        yield Attacker(server, runner, keys, hidden)


def timed(knowledge: Knowledge, hidden: Sequence[str], nowhere: Sequence[str], pairs: int) -> Iterator[Row]:
    """Compare searches for words of hidden documents with words of none, as a stranger and as a member."""
    for who, groups in (("a stranger", frozenset[str]()), ("control: a member", frozenset(["staff"]))):
        seconds = numpy.array([pair(knowledge, (hidden, nowhere), n, groups) for n in range(-10, pairs)])[10:]
        drawn = numpy.random.default_rng(1).integers(pairs, size=(RESAMPLES, pairs))
        differences = numpy.median(seconds[drawn, 0] - seconds[drawn, 1], axis=1)
        low, high = numpy.quantile(differences, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        usual = statistics.median(seconds[:, 1])
        middle = statistics.median(seconds[:, 0] - seconds[:, 1])
        figure = f"{1e6 * middle:+.1f} us ({1e6 * low:+.1f} to {1e6 * high:+.1f}) of {1e6 * usual:.0f} us"
        if groups:
            yield Row(f"{who}'s search, by time", figure, "interval above 0: it is seen", low > 0)
        else:
            most = usual / SHARE
            yield Row(f"{who}'s search, by time", figure, f"within {1e6 * most:.0f} us", -most < low and high < most)


def pair(
    knowledge: Knowledge, both: tuple[Sequence[str], Sequence[str]], n: int, groups: frozenset[str]
) -> list[float]:
    """Seconds of a search for hidden words and of one for words of no document, in alternating order."""
    taken = [0.0, 0.0]
    for which in (0, 1) if n % 2 else (1, 0):
        started = time.perf_counter()
        knowledge.search(both[which][n % DOCUMENTS], 5, groups)
        taken[which] = time.perf_counter() - started
    return taken


if __name__ == "__main__":
    sys.exit(show(rows()))
