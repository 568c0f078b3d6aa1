"""A skill's flood does not delay the others, up to their fair share; counted in passes, without clocks."""

from collections import Counter

import pytest

from server.engine.scheduling.fairness import next_waiting
from server.engine.scheduling.prefill_budget import LEAST, SHORT_PASS_SECONDS
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
    waiting = ["a1", "a2", "b1", "c1"]
    assert next_waiting(waiting, "aab", lambda one: one[0], 9) == "c1"
    assert next_waiting(waiting, "abc", lambda one: one[0], 9) == "a1"
    assert next_waiting(waiting, "", lambda one: one[0], 9) == "a1"


def test_without_a_free_slot_a_skill_below_its_share_is_admitted_and_no_other() -> None:
    assert next_waiting(["a1", "b1"], "aaaa", lambda one: one[0], 4) == "b1"
    assert next_waiting(["a1", "b1"], "aaaab", lambda one: one[0], 4) == "b1"
    assert next_waiting(["a1", "b1"], "aaaabb", lambda one: one[0], 4) is None, "both have half of the slots"
    assert next_waiting(["a1"], "aaaab", lambda one: one[0], 4) is None
    assert next_waiting([*"bcdef"], "aaaa", lambda one: one[0], 4) == "b", "a share is one slot at least"
    assert next_waiting([*"bcdef"], "aaaab", lambda one: one[0], 4) == "c"


@pytest.mark.parametrize("flood", [SLOTS, 50, 500])
def test_beside_a_flood_another_skill_begins_at_once(flood: int) -> None:
    made = scheduler()
    for number in range(flood):
        made.add(sequence("flood", number + 10))
    passes_until(made, made.waiting[0][0])
    for number in range(SLOTS // 2):
        made.add(other := sequence("other", number + 1000))
        assert passes_until(made, other) == 1


def test_guests_take_the_slots_that_a_flood_gives_up() -> None:
    made = scheduler()
    for number in range(500):
        made.add(sequence("flood", number + 10))
    passes_until(made, made.waiting[0][0])
    for number in range(50):
        made.add(sequence("other", number + 1000))
    held = []
    for _ in range(3 * REPLY):
        batch = made.schedule()
        held.append(tuple(sum(one.skill == skill for one in made.running) for skill in ("flood", "other")))
        made.commit(batch, [7] * sum(chunk.rows for chunk in batch.chunks))
    assert held[0] == (SLOTS, SLOTS // 2), "as guests"
    assert set(held[REPLY:]) == {(SLOTS // 2, SLOTS // 2)}, "and then by half"


def test_a_guest_waits_where_there_are_too_few_blocks() -> None:
    made = Scheduler(slots=2, context=64, batch_tokens=64, max_waiting=9)
    for number in range(2):
        made.add(Sequence("long", (number + 10, 2, 3), Sampling(temperature=0, max_tokens=61)))
    made.schedule()
    made.add(first := Sequence("other", (1, 2, 3), Sampling(temperature=0, max_tokens=61)))
    made.add(Sequence("third", (1, 2, 3), Sampling(temperature=0, max_tokens=8)))
    made.schedule()
    assert [one.skill for one in made.running] == ["long", "long", "other"], "the block for pins is free"
    assert not made.free
    made.abort(first)


def test_the_prompt_of_a_quiet_skill_is_computed_before_those_of_a_busy_one() -> None:
    made = Scheduler(slots=4, context=128, batch_tokens=32, max_waiting=9)
    for number in range(3):
        prompt = tuple(range(number * 100 + 100, number * 100 + 160))
        made.add(Sequence("busy", prompt, Sampling(temperature=0, max_tokens=4)))
    made.add(Sequence("quiet", tuple(range(1, 30)), Sampling(temperature=0, max_tokens=4)))
    assert made.schedule().chunks[0].sequence.skill == "quiet"


def flooded(count: int = 8) -> Scheduler:
    """Every slot decodes for the flood, and `count` more of its requests wait."""
    made = Scheduler(slots=SLOTS, context=128, batch_tokens=64, max_waiting=1000)
    for number in range(SLOTS + count):
        made.add(Sequence("flood", (number, *range(300, 320)), Sampling(temperature=0, max_tokens=8 + 8 * number)))
    passes_until(made, made.running[-1] if made.running else made.waiting[SLOTS - 1][0])
    return made


def planned(made: Scheduler) -> Counter[str]:
    """Computes a pass; returns its tokens by skill."""
    batch = made.schedule()
    made.commit(batch, [7] * sum(chunk.rows for chunk in batch.chunks))
    counts: Counter[str] = Counter()
    for chunk in batch.chunks:
        counts[chunk.sequence.skill] += len(chunk.ids)
    return counts


def test_beside_a_queue_a_quiet_prompt_has_every_other_pass_for_itself() -> None:
    made = flooded()
    made.add(sequence("quiet", 1000))
    assert planned(made) == {"quiet": 3}
    made.add(sequence("other", 2000))
    assert planned(made) == {"flood": SLOTS, "quiet": 1, "other": 3}, "replies are not stalled twice"
    made.add(sequence("third", 3000))
    made.abort(next(one for one in made.running if one.skill == "other"))
    assert planned(made) == {"third": 3}


def test_without_a_queue_replies_are_in_every_pass() -> None:
    made = flooded(0)
    made.add(sequence("quiet", 1000))
    assert planned(made) == {"flood": SLOTS, "quiet": 3}


def test_beside_a_queue_the_passes_of_the_busy_skill_are_short() -> None:
    made = flooded()
    second = SHORT_PASS_SECONDS / (SLOTS + LEAST)
    made.prefill_budget.record(100, 100 * second)
    made.abort(made.running[0])
    assert planned(made) == {"flood": SLOTS - 1 + LEAST + 1}
    made.add(Sequence("quiet", tuple(range(500, 516)), Sampling(temperature=0, max_tokens=8)))
    assert planned(made) == {"quiet": 16}, "and those of a question are not"


def test_prompts_of_a_busy_skill_are_computed_beside_a_stream_of_quiet_ones() -> None:
    made = Scheduler(slots=4, context=128, batch_tokens=128, max_waiting=99)
    for number in range(4):
        made.add(busy := Sequence("busy", (number, *range(60)), Sampling(temperature=0, max_tokens=1)))
    for number in range(8):
        made.add(Sequence("quiet", (number + 200, *range(40)), Sampling(temperature=0, max_tokens=1)))
        batch = made.schedule()
        made.commit(batch, [7] * sum(chunk.rows for chunk in batch.chunks))
    assert busy.finish, "each pass has a prompt of the quiet skill"


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
