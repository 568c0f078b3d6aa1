"""robots.txt (RFC 9309): the longest matching rule of the most specific group decides, and Allow wins a draw."""

import re
from collections.abc import Sequence

from msgspec import Struct

AGENT = "secateur"
LARGEST = 500 << 10
"""Bytes that are read; rules beyond them are ignored."""


class Rules(Struct, frozen=True):
    """The rules for this program on one host."""

    rules: Sequence[tuple[bool, str]] = ()
    """Whether paths that match the pattern may be read."""
    delay: float = 0.0
    """Seconds between requests (`Crawl-delay`, which is no part of the standard)."""

    def allows(self, path: str) -> bool:
        """Whether a path, with its query, may be read."""
        matching = [(len(pattern), allowed) for allowed, pattern in self.rules if _matches(pattern, path)]
        return max(matching, default=(0, True))[1]


ALL, NOTHING = Rules(), Rules(((False, "/"),))


def parse(content: bytes) -> Rules:
    """The rules of the groups for `secateur`, else of the groups for every agent."""
    groups: dict[str, list[tuple[str, str]]] = {}
    current: list[str] = []
    open_group = False
    for line in content[:LARGEST].decode("utf-8", "replace").splitlines():
        key, colon, value = (part.strip() for part in line.partition("#")[0].partition(":"))
        if not colon:
            continue
        if key.lower() == "user-agent":
            current = [*current, value.lower()] if open_group else [value.lower()]
            open_group = True
            groups.setdefault(value.lower(), [])
        elif current:
            open_group = False
            for agent in current:
                groups[agent].append((key.lower(), value))
    return _rules(groups.get(AGENT, groups.get("*", [])))


def _rules(lines: Sequence[tuple[str, str]]) -> Rules:
    delays = [float(value) for key, value in lines if key == "crawl-delay" and re.fullmatch(r"\d+(\.\d+)?", value)]
    # An empty Disallow forbids nothing.
    rules = [(key == "allow", value) for key, value in lines if key in ("allow", "disallow") and value]
    return Rules(tuple(rules), max(delays, default=0.0))


def _matches(pattern: str, path: str) -> bool:
    """Whether a pattern with `*` and a final `$` matches the beginning of a path; takes linear time."""
    ends = pattern.endswith("$")
    first, *rest = pattern.removesuffix("$").split("*")
    if not path.startswith(first):
        return False
    position = len(first)
    for place, part in enumerate(rest):
        last = place == len(rest) - 1
        found = path.rfind(part, position) if last and ends else path.find(part, position)
        if found < 0:
            return False
        position = found + len(part)
    return not ends or position == len(path)
