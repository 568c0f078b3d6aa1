from hypothesis import given, settings
from hypothesis import strategies as st

from server.chat.choices.stop_strings import StopStrings

LETTERS = "ab<"  # few letters, so that stop strings and beginnings of them occur


def cut(text: str, stops: list[str]) -> tuple[str, bool]:
    """What a stream may send, done on the whole text: the shortest beginning whose end completes a stop string."""
    for end in range(len(text) + 1):
        found = [text.find(stop) for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: min(found)], True
    return text, False


@settings(deadline=None)
@given(
    st.lists(st.text(LETTERS, max_size=6), max_size=12),
    st.lists(st.text(LETTERS, min_size=1, max_size=4), max_size=4),
)
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stops: list[str]) -> None:
    one_by_one = StopStrings(stops)
    sent = "".join(one_by_one.push(letter) for letter in "".join(pieces)) + one_by_one.finish()
    assert (sent, one_by_one.found is not None) == cut("".join(pieces), stops)

    whole = StopStrings(stops)
    sent = "".join(whole.push(piece) for piece in pieces) + whole.finish()
    found = [index for stop in stops if (index := "".join(pieces).find(stop)) >= 0]
    assert (whole.found is not None) is bool(found)
    if len(stops) == 1:
        assert sent == ("".join(pieces)[: found[0]] if found else "".join(pieces))


def test_nothing_is_held_back_that_cannot_begin_a_stop_string() -> None:
    stops = StopStrings(["\n\nUser:"])
    assert stops.push("Hello") == "Hello"
    assert stops.push(" you\n") == " you"
    assert stops.push("\n") == ""
    assert stops.push("Us") == ""
    assert stops.push("age") == "\n\nUsage"
    assert stops.found is None
