"""Reads a POD page (perlpodspec) as blocks: `=headN` headings and paragraphs, with formatting codes resolved."""

import re
from collections.abc import Iterator

from server.text.faq.blocks import Block

CODE = re.compile(r"([A-Z])(?:<<+\s+((?:(?!<<).)*?)\s+>>+|<([^<>]*)>)", re.DOTALL)
"""An innermost formatting code, in either of its two forms."""
ENTITIES = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/"}
OPEN, CLOSE = "\ue000", "\ue001"
"""Placeholders for < and > until all codes are resolved."""


def blocks(page: str) -> list[Block]:
    """The blocks of the page."""
    return list(_read(re.split(r"\n[ \t]*\n", page)))


def _read(paragraphs: list[str]) -> Iterator[Block]:
    """One block for each paragraph with text; Perl code and `=begin` sections are dropped."""
    pod, other = False, False
    for paragraph in (text.strip("\n") for text in paragraphs):
        command = re.match(r"=(\w+)\s*", paragraph)
        name = command[1] if command else ""
        text = paragraph[command.end() :] if command else paragraph
        pod = name != "cut" if command else pod
        other = (other or name == "begin") and name != "end"
        if not pod or other or not text.strip():
            continue
        if name.startswith("head") and name[4:].isdigit():
            yield Block(resolve(text), name, int(name[4:]))
        elif name in ("", "item"):
            yield Block(text if text[0] in " \t" else resolve(text))


def resolve(text: str) -> str:
    """Text on one line, its formatting codes replaced by what they display."""
    before = None
    while before != text:
        before = text
        text = CODE.sub(_shown, text)
    return " ".join(text.replace(OPEN, "<").replace(CLOSE, ">").split())


def _shown(code: re.Match[str]) -> str:
    """The text that one formatting code displays."""
    kind, inner = code[1], code[2] if code[2] is not None else code[3]
    if kind in "XZ":
        return ""
    if kind == "L":
        inner = inner.split("|", 1)[0].strip('/"')
    if kind == "E":
        inner = ENTITIES.get(inner, inner)
    return inner.replace("<", OPEN).replace(">", CLOSE)
