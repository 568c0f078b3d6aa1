"""A POD page (perlpodspec) as blocks: =head1 to =head4 are headings, formatting codes are resolved to their text."""

import re
from collections.abc import Iterator

from pruning.data.faq.blocks import Block

CODE = re.compile(r"([A-Z])(?:<<+\s+((?:(?!<<).)*?)\s+>>+|<([^<>]*)>)", re.DOTALL)
"""An innermost formatting code, in one of its two forms."""
ENTITIES = {"lt": "<", "gt": ">", "verbar": "|", "sol": "/"}
OPEN, CLOSE = "\ue000", "\ue001"
"""Stand for the signs < and > until all codes are resolved."""


def blocks(page: str) -> list[Block]:
    """The blocks of the page."""
    return list(_read(re.split(r"\n[ \t]*\n", page)))


def _read(paragraphs: list[str]) -> Iterator[Block]:
    """Blocks, one for each paragraph that has text; perl code and what is for other formats is left out."""
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
    """Running text with its formatting codes replaced by what they show, on one line."""
    before = None
    while before != text:
        before = text
        text = CODE.sub(_shown, text)
    return " ".join(text.replace(OPEN, "<").replace(CLOSE, ">").split())


def _shown(code: re.Match[str]) -> str:
    """What a reader sees of one formatting code."""
    kind, inner = code[1], code[2] if code[2] is not None else code[3]
    if kind in "XZ":
        return ""
    if kind == "L":
        inner = inner.split("|", 1)[0].strip('/"')
    if kind == "E":
        inner = ENTITIES.get(inner, inner)
    return inner.replace("<", OPEN).replace(">", CLOSE)
