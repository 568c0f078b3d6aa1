"""Ranking by words beside BM25 written out, by vectors beside plain products, and both joined by hand."""

import math
import random
import re
import sqlite3
from pathlib import Path

import numpy
import pytest

from server.errors import ArtifactError
from server.knowledge.index import schema, terms, vectors
from server.knowledge.index.fusion import by_rank, by_score
from server.knowledge.index.lexical import COLUMN_WEIGHTS, Lexical, read_partitions
from server.knowledge.index.schema import Entry
from server.knowledge.passages import Passage

WORDS = ["alder", "birch", "cedar", "dogwood", "elm", "fir", "gorse", "hazel", "ivy", "juniper"]


def entry(name: str, *passages: Passage, groups: tuple[str, ...] = (), language: str = "xx") -> Entry:
    return Entry(name, f"http://a/{name}", name, "0" * 64, language, groups, passages)


def opened(path: Path, *entries: Entry) -> Lexical:
    schema.write(path, entries, schema.ordered(entries))
    connection = sqlite3.connect(path, isolation_level=None)
    return Lexical(connection, read_partitions(connection))


def bm25(query: list[str], documents: list[list[list[str]]]) -> list[float]:
    """BM25 with k1 = 1.2 and b = 0.75, the columns' frequencies weighted, over the best that a document could have."""
    lengths = [sum(map(len, columns)) for columns in documents]
    mean = sum(lengths) / len(lengths)
    scores, most = [0.0] * len(documents), 0.0
    for word in query:
        holding = sum(any(word in column for column in columns) for columns in documents)
        weight = max(math.log((len(documents) - holding + 0.5) / (holding + 0.5)), 1e-6)
        most += 2.2 * weight
        for place, columns in enumerate(documents):
            count = sum(share * column.count(word) for share, column in zip(COLUMN_WEIGHTS, columns, strict=True))
            scores[place] += weight * 2.2 * count / (count + 1.2 * (0.25 + 0.75 * lengths[place] / mean))
    return [score / most for score in scores]


def test_coverage_is_bm25_over_its_bound(tmp_path: Path) -> None:
    draw = random.Random(3)
    made = [
        Passage(" ".join(draw.choices(WORDS, k=draw.randint(3, 30))), draw.choice(WORDS), "u", (draw.choice(WORDS),))
        for _ in range(60)
    ]
    lexical = opened(tmp_path / "index", entry("a", *made))
    partitions = list(read_partitions(sqlite3.connect(tmp_path / "index")))
    columns = [[[one.title], list(one.headings), one.text.split()] for one in made]
    for query in (["cedar"], ["alder", "ivy"], WORDS[:4]):
        expected = bm25(query, columns)
        hits = lexical.search(" ".join(query), partitions, 60)
        assert len(hits) == sum(score > 0 for score in expected)
        for hit in hits:
            assert hit.coverage == pytest.approx(min(1.0, expected[hit.id - 1]), abs=1e-6)


def test_common_words_are_left_out_where_rarer_ones_remain() -> None:
    found = [terms.Term(f"w{n}", (f"w{n}",), n * 10_000, 1.0) for n in (3, 1, 2)]
    assert [term.word for term in terms.affordable(found)] == ["w1"]
    assert [term.word for term in terms.affordable(found[:1])] == ["w3"]


@pytest.mark.parametrize(
    ("question", "tokenizer", "words"),
    [
        ("How do I prune a rose?", "porter unicode61", ["prune", "rose"]),
        ("How do I?", "porter unicode61", ["how", "do", "i"]),
        ("Wie oft, wie?", "unicode61", ["wie", "oft"]),
        ("営業時間は", "trigram", ["営業時", "業時間", "時間は"]),
    ],
)
def test_the_words_of_a_question(question: str, tokenizer: str, words: list[str]) -> None:
    assert terms.words(question, tokenizer) == words


def test_partitions_have_consecutive_ids_and_their_own_words(tmp_path: Path) -> None:
    passage = Passage("alder birch", "t", "u", question="Which?")
    entries = [
        entry("a", passage, groups=("staff",)),
        entry("b", passage, passage),
        entry("c", passage, groups=("staff",)),
        entry("d", passage, language="en"),
    ]
    opened(tmp_path / "index", *entries)
    connection = sqlite3.connect(tmp_path / "index")
    found = {(tuple(one.groups), one.tokenizer.split()[0]): one for one in read_partitions(connection)}
    assert {key: (one.first, one.last) for key, one in found.items()} == {
        ((), "porter"): (1, 1),
        (("staff",), "unicode61"): (2, 3),
        ((), "unicode61"): (4, 5),
    }
    assert sorted((one.first_question, one.last_question) for one in found.values()) == [(1, 1), (2, 3), (4, 5)]
    names = [name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE name LIKE 'lexical__'")]
    assert sorted(names) == ["lexical_1", "lexical_2", "lexical_3"]


def test_the_nearest_vectors_are_those_of_a_plain_product(tmp_path: Path) -> None:
    matrix = vectors.unit(numpy.random.default_rng(0).standard_normal((500, 16)).astype(numpy.float32))
    vectors.write(tmp_path / "v.npy", matrix)
    found = vectors.Vectors(tmp_path / "v.npy", 500, 16)
    query = matrix[7] + matrix[400]
    cosines = matrix @ query
    rows = [row for row in numpy.argsort(-cosines) if row < 100 or row >= 300][:10]
    assert [row for row, _ in found.best(query, [(0, 100), (300, 500), (9, 9)], 10)] == rows
    assert found.cosine(query, 3) == pytest.approx(float(cosines[3]))
    with pytest.raises(ArtifactError, match=re.escape("is float32 (500, 16), not float32 (500, 17)")):
        vectors.Vectors(tmp_path / "v.npy", 500, 17)
    (tmp_path / "v.npy").write_bytes(b"\x93NUMPY rubbish")
    with pytest.raises(ArtifactError, match="cannot be read"):
        vectors.Vectors(tmp_path / "v.npy", 500, 16)


def test_rankings_are_joined_as_their_formulas_say() -> None:
    assert by_rank([[5, 3], [3, 9]]) == {5: 1 / 61, 3: 1 / 62 + 1 / 61, 9: 1 / 62}
    assert by_score({1: 0.5, 2: 0.4}, {2: 1.0, 7: 0.3}) == {1: 0.5, 2: pytest.approx(0.6)}
