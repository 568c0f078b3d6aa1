"""Values of the options of `secateur keys`, read strictly, and the options of a key's limits."""

import argparse
import re
from collections.abc import Callable
from datetime import timedelta

from server.skills.identity import LONGEST_GROUP

LIMITS = {
    "requests_per_minute": "requests within a minute",
    "tokens_per_minute": "tokens within a minute, each request counted as prompt plus longest possible reply",
    "tokens_per_day": "prompt and reply tokens in a day (UTC)",
    "tokens_per_month": "prompt and reply tokens in a calendar month (UTC)",
    "concurrent_replies": "replies generated at once",
}


def add_limits(parser: argparse.ArgumentParser, kind: Callable[[str], object], metavar: str) -> None:
    """One option for each limit; options not given are left out of the result."""
    group = parser.add_argument_group("limits of the key, over all its skills and beside theirs")
    for name, text in LIMITS.items():
        option = f"--{name.replace('_', '-')}"
        group.add_argument(option, dest=name, type=kind, metavar=metavar, help=text, default=argparse.SUPPRESS)


def limit(text: str) -> int:
    """A whole number above 0, such as 200000 or 200_000."""
    if not re.fullmatch(r"[1-9][0-9_]{0,17}", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no limit: write a whole number above 0")
    return int(text.replace("_", ""))


def limit_or_none(text: str) -> int | None:
    """The same, or `none` for no limit."""
    return None if text == "none" else limit(text)


def duration(text: str) -> timedelta:
    """A number of days, hours or minutes above 0, such as 90d."""
    found = re.fullmatch(r"([1-9][0-9]{0,4})([dhm])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not a span of time: write 90d, 12h or 30m")
    return timedelta(**{{"d": "days", "h": "hours", "m": "minutes"}[found[2]]: int(found[1])})


def group_name(text: str) -> str:
    """A group's name, as in the `groups` of a knowledge's source."""
    if not text.strip() or len(text) > LONGEST_GROUP or not text.isprintable():
        raise argparse.ArgumentTypeError(f"{text!r} is no group: write 1 to {LONGEST_GROUP} printable characters")
    return text


def signer_name(text: str) -> str:
    """A signer's name: one word without `#`."""
    if not text or text.split() != [text] or "#" in text:
        raise argparse.ArgumentTypeError(f"{text!r} is no name of a signer: write one word without #")
    return text
