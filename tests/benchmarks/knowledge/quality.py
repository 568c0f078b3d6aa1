"""How often the answer to a question is found: hit@1, @3 and @5 on the pairs of a task of `secateur task from-faq`.

The question itself is left out of the knowledge: each answer is a document below its page's title. Documents are not
cut, so a hit is the answer itself. Means over questions, with 95 % intervals of 2,000 bootstrap draws.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import get_args

import numpy

from server.knowledge import settings
from server.knowledge.build.building import build
from server.knowledge.readers import formats
from server.knowledge.record import Ranking
from server.knowledge.search import Knowledge
from tests.benchmarks.knowledge.speed import ENCODER

DEPTHS = (1, 3, 5)
SETTINGS = """\
name = "{name}"
encoder = "{encoder}"
passage_characters = 20000
[[sources]]
path = "answers.jsonl"
"""


def measure(items: Path, folder: Path) -> Iterator[str]:
    """The table's lines for the pairs in the JSON lines file `items`; builds the knowledge in `folder`."""
    pairs = [json.loads(line) for line in items.read_text().splitlines()]
    folder.mkdir(parents=True, exist_ok=True)
    titles = {source: _title(Path(source)) for source in {pair["source"] for pair in pairs}}
    lines = [
        json.dumps({"text": pair["answer"], "title": titles[pair["source"]], "id": number})
        for number, pair in enumerate(pairs)
    ]
    (folder / "answers.jsonl").write_text("\n".join(lines))
    (folder / "knowledge.toml").write_text(SETTINGS.format(name=items.stem, encoder=ENCODER))
    made = build(settings.read(folder / "knowledge.toml"), folder, folder / "knowledge")
    knowledge = Knowledge.open(made.output)
    texts = [document.name for document in knowledge.documents()]
    yield f"{items.stem}: {len(pairs)} questions"
    for ranking in get_args(Ranking):
        places = [_place(knowledge, pair["question"], number, texts, ranking) for number, pair in enumerate(pairs)]
        cells = "  ".join(f"@{depth} {_interval([place <= depth for place in places])}" for depth in DEPTHS)
        yield f"  {ranking:<8} {cells}"
    limit = knowledge.thresholds.on_topic
    best = [max((one.relevance for one in knowledge.search(pair["question"])), default=0.0) for pair in pairs]
    found = knowledge.manifest.calibration
    yield (
        f"  on topic from {limit}: refuses {numpy.mean([value < limit for value in best]):.1%} of these questions and "
        f"{found.off_topic_refused:.1%} of {found.off_topic} of other subjects"
    )


def _place(knowledge: Knowledge, question: str, number: int, names: Sequence[str], ranking: Ranking) -> int:
    """The rank of the question's own answer among those found, or one beyond the deepest."""
    found = knowledge.search(question, max(DEPTHS), ranking=ranking)
    wanted = f"answers.jsonl#{number}"
    ranks = [rank for rank, one in enumerate(found, 1) if names[one.id - 1] == wanted]
    return ranks[0] if ranks else max(DEPTHS) + 1


def _interval(hits: Sequence[bool]) -> str:
    values = numpy.array(hits, dtype=float)
    draws = numpy.random.default_rng(0).choice(values, (2000, len(values))).mean(axis=1)
    low, high = numpy.quantile(draws, (0.025, 0.975))
    return f"{values.mean():.3f} [{low:.2f}, {high:.2f}]"


def _title(page: Path) -> str:
    return formats.read(page.read_bytes(), formats.format_of(page.name, wanted="auto"), page.name)[0].title
