"""`python -m tests.exams.hostile.cache_probe`: guesses the first words of others by cached tokens and by time.

The attacker has an API key of the skill. For each victim's prompt it sends the same text and one with a wrong first
word, in random order, and compares `cached_tokens` and TTFT. Its own prompts are the control: a hit must be seen there.
"""

import argparse
import http.client
import json
import random
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy
from msgspec import Struct

from server.commands.bench.client import Server
from server.skills.api_keys import digest
from tests.conftest import ROOT
from tests.exams.row import Row, show
from tests.support.harness import ORIGIN
from tests.support.visitor import Visitor

ARTIFACTS = ("build/smollm2-vocabulary", "build/base/*")
TRIALS = 40
MOST_ROUNDS = 10
RESAMPLES = 10_000
CONFIDENCE = 0.999
SHARE = 4  # a difference below a quarter of what a hit saves counts as none
ATTACKER, VICTIM = "sk-exam-attacker", "sk-exam-victim"
SLOTS, CONTEXT = 2, 512
SYSTEM = "You are the help desk of a shop. Answer every customer in one short, friendly line. " * 3
WORDS = ("order", "parcel", "blue", "shoe", "letter", "bank", "river", "green", "window", "seven", "street", "paper")
LENGTH = 170  # words of a prompt


class Seen(NamedTuple):
    """What the attacker sees of one reply."""

    cached: int
    seconds: float
    """TTFT."""


class Trials(Struct):
    """What the attacker saw of right and of wrong guesses, one pair for each prompt of a victim."""

    right: list[Seen]
    wrong: list[Seen]

    @property
    def advantage(self) -> float:
        """The share of pairs that `cached_tokens` tells apart."""
        return statistics.fmean(
            right.cached != wrong.cached for right, wrong in zip(self.right, self.wrong, strict=True)
        )

    @property
    def quicker(self) -> int:
        """Pairs in which the right guess had its first token sooner; half of them by chance."""
        return sum(right.seconds < wrong.seconds for right, wrong in zip(self.right, self.wrong, strict=True))

    def difference(self) -> tuple[float, float, float]:
        """Median TTFT of right minus wrong guesses in ms, and its bootstrap interval over pairs."""
        pairs = 1000 * numpy.array([[seen.seconds for seen in self.right], [seen.seconds for seen in self.wrong]])
        drawn = pairs[:, numpy.random.default_rng(1).integers(pairs.shape[1], size=(RESAMPLES, pairs.shape[1]))]
        right, wrong = numpy.median(drawn, axis=2)
        low, high = numpy.quantile(right - wrong, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
        middle = numpy.median(pairs, axis=1)
        return float(middle[0] - middle[1]), float(low), float(high)

    def extend(self, more: "Trials") -> None:
        """Add pairs."""
        self.right += more.right
        self.wrong += more.wrong


class Prober:
    """Asks a running server as the attacker, and as its victims."""

    def __init__(self, port: int, seed: int) -> None:
        self._port = port
        self._random = random.Random(seed)

    def prompt(self) -> str:
        """A new text of random words."""
        return " ".join(self._random.choices(WORDS, k=LENGTH))

    def trials(self, victims: Sequence[Callable[[str], object]], count: int) -> list[Trials]:
        """Let each victim in turn ask `count` new prompts, and guess each prompt rightly and wrongly."""
        found = [Trials([], []) for _ in victims]
        for _ in range(count):
            for victim, trials in zip(victims, found, strict=True):
                text = self.prompt()
                victim(text)
                guesses = [(trials.right, text), (trials.wrong, f"wrong {text.partition(' ')[2]}")]
                self._random.shuffle(guesses)
                for seen, guess in guesses:
                    seen.append(self.ask(ATTACKER, guess))
        return found

    def itself(self, text: str) -> None:
        """The attacker asks."""
        self.ask(ATTACKER, text)

    def program(self, text: str) -> None:
        """The holder of another API key asks."""
        self.ask(VICTIM, text)

    def ask(self, key: str, text: str, tokens: int = 1) -> Seen:
        """The reply's cached tokens and TTFT, over a new connection."""
        body = {"model": "help", "messages": [{"role": "user", "content": text}], "max_tokens": tokens}
        body |= {"stream": True, "stream_options": {"include_usage": True}, "temperature": 0}
        cached, first = 0, 0.0
        with closing(http.client.HTTPConnection("127.0.0.1", self._port, timeout=300)) as connection:
            sent = time.monotonic()
            connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Authorization": f"Bearer {key}"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            for line in response:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    ended = any(
                        choice["delta"].get("content") or choice["finish_reason"] for choice in event["choices"]
                    )
                    first = first or (time.monotonic() - sent if ended else 0.0)
                    cached = event["usage"]["prompt_tokens_details"]["cached_tokens"] if event.get("usage") else cached
        return Seen(cached, first)

    def visitor(self, text: str) -> None:
        """A visitor of the skill's page asks."""
        Visitor.at(f"http://127.0.0.1:{self._port}").ask(text)

    def busy(self, count: int) -> tuple[list[float], list[float]]:
        """TTFT of new prompts while nobody else is served, and while a victim reads a reply."""
        idle, beside = [], []
        for _ in range(count):
            idle.append(self.ask(ATTACKER, self.prompt()).seconds)
            reader = threading.Thread(target=self.ask, args=(VICTIM, self.prompt(), 200))
            reader.start()
            time.sleep(0.05)
            beside.append(self.ask(ATTACKER, self.prompt()).seconds)
            reader.join()
        return idle, beside

    def kept(self, others: int) -> int:
        """Cached tokens of the attacker's last eight prompts, nearly as many as fit, after a victim's `others`."""
        own = [self.prompt() for _ in range(8)]
        for text in own:
            self.ask(ATTACKER, text)
        for _ in range(others):
            self.ask(VICTIM, self.prompt())
        return sum(self.ask(ATTACKER, text).cached for text in reversed(own))


def find_artifact() -> Path | None:
    """The pruned model if it is built, else a base model that is."""
    return next((path.parent for pattern in ARTIFACTS for path in ROOT.glob(f"{pattern}/lineage.json")), None)


def rows(artifact: Path, folder: Path, trials: int = TRIALS) -> list[Row]:
    """Probe a server of `artifact` with rounds of `trials` prompts of each victim; `folder` is for its files.

    On a busy machine more rounds follow, until the interval of TTFT is as narrow as the bound: its width decides, never
    what it holds.
    """
    with serve(artifact, folder) as server:
        prober = Prober(server.port, seed=19)
        prober.trials([prober.visitor], 2)  # warm-up
        own, of_key, of_visitor = rounds(prober, trials)
        idle, beside = prober.busy(min(10, trials))
        alone, after = prober.kept(0), prober.kept(3)
    saved = -own.difference()[0]
    load = f"median {median_ms(idle):.0f} ms alone, {median_ms(beside):.0f} ms beside another's reply"
    volume = f"{alone} of the attacker's own tokens kept alone, {after} after three prompts of a victim"
    return [
        *control(own),
        *guessed("another key's words", of_key, saved),
        *guessed("a visitor's words", of_visitor, saved),
        Row("others' presence, by TTFT", load, "none: it is seen", held=True),
        Row("others' volume, by eviction", volume, "none: it is seen", held=True),
    ]


def rounds(prober: Prober, trials: int) -> list[Trials]:
    """Trials with the attacker's own prompts, another key's and visitors'."""
    found = [Trials([], []) for _ in range(3)]
    for _ in range(MOST_ROUNDS):
        new = prober.trials([prober.itself, prober.program, prober.visitor], trials)
        for victim, more in zip(found, new, strict=True):
            victim.extend(more)
        if sharp(found):
            break
    return found


def sharp(found: Sequence[Trials]) -> bool:
    """Whether the intervals of the victims, behind the control, are narrower than the bound on either side."""
    saved = -found[0].difference()[0]
    return all(high - low < saved / SHARE for _, low, high in (trials.difference() for trials in found[1:]))


def serve(artifact: Path, folder: Path) -> Server:
    """A server of a skill with two API keys and a page, not limited in requests."""
    lines = {
        "name": "help",
        "system": SYSTEM.strip(),
        "keys": [digest(ATTACKER), digest(VICTIM)],
        "origins": [ORIGIN],
        "max_tokens": 1,
        "tokens_per_reply": 256,
        **dict.fromkeys(("sessions_per_minute", "address_requests_per_minute"), 100_000),
    }
    (folder / "skill.toml").write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in lines.items()))
    server = Server(artifact, folder)
    settings = folder / "server.toml"
    settings.write_text(f"{settings.read_text()}\nslots = {SLOTS}\ncontext = {CONTEXT}\nthreads = 1\n")
    return server


def control(own: Trials) -> list[Row]:
    """What the attacker sees of its own earlier prompts, which shows that the probe sees hits."""
    _, low, high = own.difference()
    return [
        Row("control: own words, by cached_tokens", cached_figure(own), "advantage 1", own.advantage == 1),
        Row("control: own words, by TTFT", time_figure(own), "interval below 0", low < high < 0),
    ]


def guessed(whose: str, trials: Trials, saved: float) -> list[Row]:
    """The rows of a victim; `saved` is what a hit saves in ms."""
    _, low, high = trials.difference()
    most = saved / SHARE
    bound = f"interval holds 0, within {most:.0f} ms (a hit saves {saved:.0f} ms)"
    return [
        Row(f"{whose}, by cached_tokens", cached_figure(trials), "advantage 0", trials.advantage == 0),
        Row(f"{whose}, by TTFT", time_figure(trials), bound, -most < low <= 0 <= high < most),
    ]


def cached_figure(trials: Trials) -> str:
    """Advantage, and the median counts."""
    right, wrong = (statistics.median(seen.cached for seen in some) for some in (trials.right, trials.wrong))
    return f"advantage {trials.advantage:.2f}: {right:.0f} cached if right, {wrong:.0f} if wrong"


def time_figure(trials: Trials) -> str:
    """Difference of medians with its interval."""
    middle, low, high = trials.difference()
    wrong = median_ms(seen.seconds for seen in trials.wrong)
    return (
        f"{middle:+.1f} ms ({low:+.1f} to {high:+.1f}) of {wrong:.0f} ms; "
        f"the right guess sooner in {trials.quicker} of {len(trials.right)}"
    )


def median_ms(seconds: Iterable[float]) -> float:
    """The median in milliseconds."""
    return 1000 * statistics.median(seconds)


def main(argv: Sequence[str]) -> int:
    """Print the rows; the exit code is 1 if one is beyond its bound."""
    parser = argparse.ArgumentParser(prog="python -m tests.exams.hostile.cache_probe", description=__doc__)
    parser.add_argument("--artifact", type=Path, default=find_artifact(), help="a model's directory")
    parser.add_argument("--trials", type=int, default=TRIALS, help="prompts of each victim in a round")
    arguments = parser.parse_args(argv)
    if arguments.artifact is None:
        parser.error(f"no model lies at {' or '.join(ARTIFACTS)}: run make demo, or name one with --artifact")
    with tempfile.TemporaryDirectory(prefix="secateur-exam-") as folder:
        return show(rows(arguments.artifact, Path(folder), arguments.trials))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
