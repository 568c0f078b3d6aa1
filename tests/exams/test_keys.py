"""The exam that guesses keys, in a short form."""

from tests.exams.hostile.keys import key_guessing


def test_guessed_keys_are_throttled_counted_and_recorded() -> None:
    rows = key_guessing(40)
    assert len(rows) == 13
    assert not [row for row in rows if not row.held]
