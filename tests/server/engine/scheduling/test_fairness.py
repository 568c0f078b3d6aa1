"""A skill's flood delays other skills by one free slot, not by its queue; counted in passes, without clocks."""

import pytest

from server.engine.scheduling.fairness import RECENT, Shares, next_waiting
from server.engine.scheduling.scheduler import Scheduler
from server.engine.sequence import Sampling, Sequence
from server.errors import Overloaded

REPLY = 8
SLOTS = 4


def sequence(skill: str, first: int = 1) -> Sequence:
    return Sequence(skill, (first, 2, 3), Sampling(temperature=0, max_tokens=REPLY))


def scheduler(max_waiting: int = 1000) -> Scheduler:
    return Scheduler(slots=SLOTS, context=64, batch_tokens=64, max_waiting=max_waiting)


def passes_until(made: Scheduler, waited: Sequence) -> int:
    """Forward passes until the sequence has its first id."""
    for number in range(1, 10_000):
        batch = made.schedule()
        made.commit(batch, [7] * sum(chunk.rows for chunk in batch.chunks))
        if waited.generated:
            return number
    raise AssertionError("it never began")


def test_the_skill_with_the_fewest_running_is_next_and_the_oldest_of_equals() -> None:
    waiting, shares = ["a1", "a2", "b1", "c1"], Shares(9)
    assert next_waiting(waiting, "aab", lambda one: one[0], shares) == "c1"
    assert next_waiting(waiting, "abc", lambda one: one[0], shares) == "a1"
    assert next_waiting(waiting, "", lambda one: one[0], shares) == "a1"


def test_one_slot_is_kept_from_a_skill_while_another_is_asked() -> None:
    shares = Shares(4)
    shares.asked("a")
    assert shares.most("a") == 4
    shares.asked("b")
    assert (shares.most("a"), shares.most("b"), shares.most("c")) == (3, 3, 3)
    assert next_waiting(["a1"], "aaa", lambda one: one[0], shares) is None
    assert next_waiting(["a1", "b1"], "aaa", lambda one: one[0], shares) == "b1"
    for _ in range(RECENT):
        shares.asked("a")
    assert shares.most("a") == 4
    assert Shares(2).most("a") == 2


@pytest.mark.parametrize("flood", [SLOTS, 50, 500])
def test_a_flood_delays_another_skill_by_at_most_one_reply(flood: int) -> None:
    made = scheduler()
    for number in range(flood):
        made.add(sequence("flood", number + 10))
    passes_until(made, made.running[0] if made.running else made.waiting[0][0])
    other = sequence("other")
    made.add(other)
    assert passes_until(made, other) <= REPLY + 1


def test_a_skill_that_was_asked_before_begins_at_once_beside_a_flood() -> None:
    made = scheduler()
    made.add(first := sequence("other"))
    passes_until(made, first)
    for number in range(500):
        made.add(sequence("flood", number + 10))
    for _ in range(3 * REPLY):
        batch = made.schedule()
        assert sum(one.skill == "flood" for one in made.running) < SLOTS
        made.commit(batch, [7] * sum(chunk.rows for chunk in batch.chunks))
    made.add(other := sequence("other"))
    assert passes_until(made, other) == 1


def test_the_prompt_of_a_quiet_skill_is_computed_before_those_of_a_busy_one() -> None:
    made = Scheduler(slots=4, context=128, batch_tokens=32, max_waiting=9)
    for number in range(3):
        prompt = tuple(range(number * 100 + 100, number * 100 + 160))
        made.add(Sequence("busy", prompt, Sampling(temperature=0, max_tokens=4)))
    made.add(Sequence("quiet", tuple(range(1, 30)), Sampling(temperature=0, max_tokens=4)))
    assert made.schedule().chunks[0].sequence.skill == "quiet"


def test_two_floods_share_the_slots() -> None:
    made = scheduler()
    for number in range(40):
        made.add(sequence("one", number + 10))
    for number in range(40):
        made.add(sequence("two", number + 10))
    held = []
    for _ in range(60):
        batch = made.schedule()
        held.append(sum(one.skill == "two" for one in made.running))
        made.commit(batch, [7] * sum(chunk.rows for chunk in batch.chunks))
    assert set(held[:50]) == {SLOTS // 2}


def test_the_queue_of_one_skill_leaves_room_for_another() -> None:
    made = scheduler(max_waiting=3)
    for number in range(SLOTS + 3):
        made.add(sequence("flood", number + 10))
    with pytest.raises(Overloaded, match="7 requests are already waiting"):
        made.add(sequence("flood", 99))
    made.add(sequence("other"))
