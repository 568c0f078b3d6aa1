"""robots.txt beside the standard library's parser where that knows the rule, and by RFC 9309's own examples."""

from urllib.robotparser import RobotFileParser

import pytest

from server.knowledge.sources.robots import parse

PLAIN = """
User-agent: other
Disallow: /

User-agent: *
Disallow: /private/
Disallow: /tmp
Crawl-delay: 7

User-agent: secateur
User-agent: friend
Disallow: /drafts/ # not yet
Disallow:
"""


@pytest.mark.parametrize(
    "text", [PLAIN, PLAIN.replace("secateur", "nobody"), "", "Disallow: /", "User-agent: *\nDisallow: /"]
)
@pytest.mark.parametrize("path", ["/", "/private/a", "/privat", "/tmp", "/tmpfile", "/drafts/1", "/drafts"])
def test_groups_and_prefixes_are_those_of_the_standard_library(text: str, path: str) -> None:
    library = RobotFileParser()
    library.parse(text.splitlines())
    assert parse(text.encode()).allows(path) == library.can_fetch("secateur", path)


@pytest.mark.parametrize(
    ("rules", "path", "allowed"),
    [  # RFC 9309, sections 2.2.2, 2.2.3 and 5
        ("allow: /example/page/\ndisallow: /example/page/disallowed.gif", "/example/page/", True),
        ("allow: /example/page/\ndisallow: /example/page/disallowed.gif", "/example/page/disallowed.gif", False),
        ("disallow: *.gif$\nallow: /publications/", "/pictures/a.gif", False),
        ("disallow: *.gif$", "/pictures/a.gif?b", True),
        ("disallow: /a*b*c", "/axxbyyc/d", False),
        ("disallow: /a*b*c", "/axxcyyb", True),
        ("disallow: /page\nallow: /page", "/page", True),
        ("disallow: /\nallow: /$", "/", True),
        ("disallow: /\nallow: /$", "/x", False),
        ("disallow: /*/*/*/*/*/*/*/*/*/*/*/z", "/" + "a/" * 5000, True),
    ],
)
def test_patterns_match_as_the_standard_says(rules: str, path: str, allowed: bool) -> None:
    assert parse(f"User-Agent: *\n{rules}".encode()).allows(path) == allowed


def test_the_delay_of_the_own_group_is_read() -> None:
    assert parse(PLAIN.encode()).delay == 0
    assert parse(PLAIN.replace("secateur", "nobody").encode()).delay == 7
    assert parse(b"\xff\xfe: \x00\n" * 1000).allows("/")
