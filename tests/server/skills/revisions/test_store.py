"""Revisions: immutable, numbered, published and rolled back; the same on SQLite and PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import TypedDict

import pytest

from server.errors import ConfigError, Conflict, NotFound
from server.skills.revisions.store import Revisions
from server.skills.revisions.text import difference, parse
from server.skills.skill import Skill
from tests.support.postgres_server import new_database
from tests.support.postgres_server import postgres as postgres

FIRST = 'name = "help"\nsystem = "Be brief."\n'
SECOND = 'name = "help"\nsystem = "Be very brief."  # shorter\n'


class By(TypedDict):
    author: str
    reason: str


BY: By = {"author": "ann", "reason": "a test"}


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.slow)])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return str(tmp_path / "skills.sqlite3")
    return new_database(request.getfixturevalue("postgres"))


@pytest.fixture
def revisions(where: str, tmp_path: Path) -> Iterator[Revisions]:
    opened = Revisions(where, tmp_path)
    yield opened
    opened.close()


def served(revisions: Revisions) -> list[str]:
    return [skill.system for skill in revisions.published()]


def test_a_saved_text_is_a_revision_that_nothing_changes(revisions: Revisions, tmp_path: Path) -> None:
    first = revisions.save("help", FIRST, **BY)
    assert (first.number, first.author, first.reason, first.text) == (1, "ann", "a test", FIRST)
    assert first.digest == Skill(name="help", system="Be brief.").revision
    assert revisions.save("help", FIRST, author="bob", reason="again") == first
    assert revisions.save("help", SECOND, **BY).number == 2
    assert [one.number for one in revisions.list("help")] == [1, 2]
    assert revisions.get("help", 1) == first
    assert revisions.get("help", "draft").text == SECOND
    assert revisions.names() == ["help"]


def test_only_what_is_published_is_served_until_it_is_rolled_back(revisions: Revisions) -> None:
    for text in (FIRST, SECOND):
        revisions.save("help", text, **BY)
    assert served(revisions) == []
    with pytest.raises(NotFound):
        revisions.get("help", "published")
    revisions.publish("help", 1, **BY)
    assert served(revisions) == ["Be brief."]
    before = revisions.stamp()
    revisions.publish("help", 2, **BY)
    assert revisions.stamp() > before
    assert served(revisions) == ["Be very brief."]
    assert revisions.get("help", "published").number == 2
    assert revisions.rollback("help", author="bob", reason="worse").number == 1
    assert served(revisions) == ["Be brief."]
    revisions.withdraw("help", **BY)
    assert served(revisions) == []
    assert [(move.action, move.number) for move in revisions.moves("help")] == [
        ("publish", 1),
        ("publish", 2),
        ("rollback", 1),
        ("withdraw", 0),
    ]


def test_what_cannot_be_published_or_rolled_back(revisions: Revisions) -> None:
    revisions.save("help", FIRST, **BY)
    with pytest.raises(NotFound, match="help@2"):
        revisions.publish("help", 2, **BY)
    with pytest.raises(NotFound, match="Nothing else was published"):
        revisions.rollback("help", **BY)
    revisions.publish("help", 1, **BY)
    with pytest.raises(NotFound):
        revisions.rollback("help", **BY)


def test_nobody_overwrites_what_another_saved_meanwhile(revisions: Revisions) -> None:
    revisions.save("help", FIRST, after=0, **BY)
    with pytest.raises(Conflict, match="help@1 was saved meanwhile by ann"):
        revisions.save("help", SECOND, after=0, **BY)
    assert revisions.save("help", SECOND, after=1, **BY).number == 2


def test_two_processes_number_their_revisions_one_after_the_other(where: str, tmp_path: Path) -> None:
    both = [Revisions(where, tmp_path) for _ in range(2)]

    def save(revisions: Revisions, who: str) -> None:
        for turn in range(10):
            revisions.save("help", f'name = "help"\nsystem = "{who} {turn}"', author=who, reason="")

    threads = [Thread(target=save, args=(one, who)) for one, who in zip(both, ("ann", "bob"), strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [one.number for one in both[0].list("help")] == list(range(1, 21))
    for one in both:
        one.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "help"\ngreting = "x"', "did you mean `greeting`?"),
        ('name = "other"', "the name is 'other' at `$.name`"),
        ('name = "help"\nsystem_file = "x"', "a revision holds its prompt itself"),
        ('name = "help"\n[identity]\nalgorithm = "HS256"\nkey = "file:../../etc/passwd"', "leads out of the folder"),
        ("name = ", "is not TOML"),
        ('name = "help"\norigins = ["x"]', "'x' at `$.origins[0]` is not an origin"),
    ],
)
def test_a_mistake_is_refused_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(text, tmp_path, "help")
    assert message in str(refused.value)


def test_the_difference_of_two_texts() -> None:
    lines = difference(FIRST, SECOND, ("help@1", "help@2")).splitlines()
    assert lines[:2] == ["--- help@1", "+++ help@2"]
    assert '-system = "Be brief."' in lines
    assert difference(FIRST, FIRST, ("a", "b")) == ""


def test_a_mended_revision_replaces_one_that_this_release_cannot_read(revisions: Revisions) -> None:
    gate = '[gate]\ntask = "greetings"\n'
    for text in (FIRST, SECOND, SECOND + gate):
        revisions.save("help", text, **BY)
    revisions.publish("help", 1, **BY)
    with revisions._connection.transaction() as database:  # what an older release saved
        database.execute("UPDATE skill_revisions SET content = ? WHERE number = 1", ('name = "help"\nold = 1\n',))
    with pytest.raises(ConfigError, match="old"):
        revisions.published()
    with pytest.raises(Conflict, match="help@3 was not evaluated on the task greetings"):
        revisions.publish("help", 3, **BY)  # its own gate holds
    judged = revisions.judge("help")
    assert judged(revisions.get("help", 2)) is None
    unreadable = judged(revisions.get("help", 1))
    assert unreadable is not None
    assert not unreadable.passed
    revisions.publish("help", 2, **BY)
    assert served(revisions) == ["Be very brief."]
