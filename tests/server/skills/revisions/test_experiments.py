"""Experiments: which conversations a rival answers, what may be compared, and when an experiment ends."""

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import Literal

import pytest

from server.errors import ConfigError, InvalidRequest, NotFound
from server.skills.catalogue import Skills
from server.skills.revisions.experiments import Trial
from server.skills.revisions.splitting import answering, running, with_rivals
from server.skills.revisions.store import Move, Revisions
from server.storage.database import Database
from tests.server.skills.revisions.test_store import BY, FIRST, SECOND
from tests.server.skills.revisions.test_store import revisions as revisions
from tests.server.skills.revisions.test_store import where as where
from tests.support.postgres_server import postgres as postgres

PEOPLE = [f"cnv_{number}" for number in range(2000)]


@pytest.fixture
def saved(revisions: Revisions) -> Revisions:
    for text in (FIRST, SECOND):
        revisions.save("help", text, **BY)
    revisions.publish("help", 1, **BY)
    return revisions


def test_conversations_are_split_by_the_share_and_stay_where_they_are(saved: Revisions) -> None:
    before = saved.stamp()
    trial = saved.compare("help", 2, 0.25, **BY)
    assert (trial.number, trial.rival, trial.author) == (1, 2, "ann")
    assert saved.stamp() > before
    (skill,) = saved.published()
    assert skill.system == "Be brief."
    answers = [answering(skill, person).system for person in PEOPLE]
    assert 0.21 < answers.count("Be very brief.") / len(PEOPLE) < 0.29
    (again,) = saved.published()
    assert [answering(again, person).system for person in PEOPLE] == answers
    assert [one.system for one in with_rivals([skill])] == ["Be brief.", "Be very brief."]
    assert skill.revision == saved.get("help", 1).digest


@pytest.mark.parametrize(
    ("name", "rival", "share", "message"),
    [
        ("help", 1, 0.5, "help@1 is published already"),
        ("help", 2, 0.0, "The share is 0: write a number between 0 and 1"),
        ("help", 2, 1.0, "The share is 1"),
        ("help", 2, float("nan"), "The share is nan"),
        ("help", 9, 0.5, "There is no revision help@9"),
        ("other", 1, 0.5, "No revision of 'other' is published"),
    ],
)
def test_nonsense_is_refused_and_changes_nothing(
    saved: Revisions, name: str, rival: int, share: float, message: str
) -> None:
    with pytest.raises((InvalidRequest, NotFound), match=message):
        saved.compare(name, rival, share, **BY)
    assert not saved.experiments.list()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{FIRST}# the same prompt", "both answer alike"),
        (f"{SECOND}tokens_per_day = 5", "`tokens_per_day` differs"),
        (f'{SECOND}origins = ["https://a.example"]', "`origins` differs"),
    ],
)
def test_two_revisions_that_cannot_be_compared(saved: Revisions, text: str, message: str) -> None:
    saved.save("help", text, **BY)
    with pytest.raises(InvalidRequest, match=message):
        saved.compare("help", 3, 0.5, **BY)


def test_an_experiment_ends_by_a_stop_or_the_next_publication(saved: Revisions) -> None:
    saved.compare("help", 2, 0.5, **BY)
    with pytest.raises(InvalidRequest, match="help@2 is being compared"):
        saved.compare("help", 2, 0.5, **BY)
    assert saved.end("help", **BY).action == "stop"
    assert running(saved.published()[0]) is None
    with pytest.raises(NotFound, match="No experiment runs with 'help'"):
        saved.end("help", **BY)
    saved.compare("help", 2, 0.5, **BY)
    saved.publish("help", 2, **BY)
    assert saved.trial("help") is None
    saved.rollback("help", **BY)
    assert running(saved.published()[0]) is None  # it does not begin again


def test_files_name_their_rival(tmp_path: Path) -> None:
    (tmp_path / "rivals").mkdir()
    (tmp_path / "rivals" / "help.toml").write_text(SECOND)
    file = tmp_path / "help.toml"
    file.write_text(f'{FIRST}[experiment]\nfile = "rivals/help.toml"\nshare = 0.5\n')
    (skill,) = Skills.read(tmp_path)
    assert {answering(skill, person).system for person in PEOPLE} == {"Be brief.", "Be very brief."}
    for table, message in (
        ('file = "rivals/help.toml"\nshare = 0', "`$.experiment.share`"),
        ('file = "../x.toml"', "must lie in a folder below"),
        ('file = "help.toml"', "must lie in a folder below"),
        ('file = "rivals/none.toml"', "none.toml cannot be read"),
        ("share = 0.5", "missing required field `file`"),
    ):
        file.write_text(f"{FIRST}[experiment]\n{table}\n")
        with pytest.raises(ConfigError) as refused:
            Skills.read(tmp_path)
        assert message in str(refused.value)


def raced(saved: Revisions, patch: pytest.MonkeyPatch, faster: Callable[[], object]) -> None:
    """Let another editor be faster by a moment, at the next change of `saved`."""
    opened = saved.experiments._connection.transaction

    def late() -> AbstractContextManager[Database]:
        faster()
        return opened()

    patch.setattr(saved.experiments._connection, "transaction", late)


def test_two_editors_cannot_both_start(
    where: str, saved: Revisions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.save("help", f"{FIRST}greeting = 'Hi'\n", **BY)
    with closing(Revisions(where, tmp_path)) as other:
        raced(saved, monkeypatch, lambda: other.compare("help", 3, 0.5, **BY))
        with pytest.raises(InvalidRequest, match="help@3 is being compared"):
            saved.compare("help", 2, 0.5, **BY)
        assert [trial.rival for trial in other.experiments.list("help")] == [3]


def test_two_editors_stop_it_once(
    where: str, saved: Revisions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved.compare("help", 2, 0.5, **BY)
    with closing(Revisions(where, tmp_path)) as other:
        raced(saved, monkeypatch, lambda: other.end("help", **BY))
        with pytest.raises(NotFound, match="No experiment runs with 'help'"):
            saved.end("help", **BY)
        assert [trial.action for trial in other.experiments.list("help")] == ["start", "stop"]


def test_a_decision_publishes_the_rival_or_ends_the_experiment(saved: Revisions) -> None:
    with pytest.raises(NotFound, match="No experiment runs with 'help'") as none:
        saved.decide("help", 2, **BY)
    assert none.value.code == "no_experiment"
    saved.compare("help", 2, 0.5, **BY)
    numbers: tuple[int | Literal["draft"], ...] = (7, "draft")
    for number in numbers:
        with pytest.raises(InvalidRequest, match=f"help@{number} takes no part: choose 1 or 2") as other:
            saved.decide("help", number, **BY)
        assert other.value.code == "experiment_invalid"
    ended = saved.decide("help", 1, **BY)
    assert isinstance(ended, Trial)
    assert (ended.action, ended.number, saved.trial("help")) == ("stop", 1, None)
    saved.compare("help", 2, 0.5, **BY)
    published = saved.decide("help", 2, **BY)
    assert isinstance(published, Move)
    assert (published.action, published.number, saved.trial("help")) == ("publish", 2, None)
