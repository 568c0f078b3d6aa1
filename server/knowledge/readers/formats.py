"""Which reader reads a document: by the source's format, its content type, or its suffix."""

from collections.abc import Callable
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from server.knowledge.passages import Document

SUFFIXES = {
    ".html": "html", ".htm": "html", ".xhtml": "html", ".md": "markdown", ".markdown": "markdown", ".pdf": "pdf",
    ".docx": "docx", ".txt": "text", ".text": "text", ".jsonl": "jsonl", ".ndjson": "jsonl", ".pod": "faq",
}  # fmt: skip
CONTENT_TYPES = {
    "text/html": "html", "application/xhtml+xml": "html", "text/markdown": "markdown", "application/pdf": "pdf",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx", "text/plain": "text",
    "application/jsonl": "jsonl", "application/x-ndjson": "jsonl",
}  # fmt: skip


def format_of(name: str, content_type: str = "", wanted: str = "auto") -> str:
    """The format of a document, empty if it is not known; `wanted` is the source's setting."""
    if wanted != "auto":
        return wanted
    kind = content_type.partition(";")[0].strip().lower()
    return CONTENT_TYPES.get(kind) or SUFFIXES.get(suffix(name), "")


def suffix(name: str) -> str:
    """The suffix of a path or URL in lower case, with its dot."""
    return PurePosixPath(urlsplit(name).path if "://" in name else name).suffix.lower()


def read(content: bytes, kind: str, name: str, encoding: str = "") -> list[Document]:
    """The documents in `content`; raises ValueError saying why there are none.

    Whatever a library raises for a damaged file passes through.
    """
    if b"\x00" in content[:1024] and kind in ("html", "markdown", "text", "jsonl") and content[:2] not in BYTE_ORDER:
        raise ValueError("it has NUL bytes: it is binary data and no text")
    found = _readers(kind)(content, name, encoding)
    if not any(section.text.strip() for document in found for section in document.sections):
        raise ValueError("it has no text")
    return found


BYTE_ORDER = (b"\xff\xfe", b"\xfe\xff")
Reader = Callable[[bytes, str, str], list[Document]]


def _readers(kind: str) -> Reader:
    """The reader of a format; each imports its library when it is first asked for."""
    from server.knowledge.readers import markdown, plain

    if kind == "html":
        from server.knowledge.readers import html

        return lambda content, _, encoding: [html.read(content, encoding)]
    if kind == "pdf":
        from server.knowledge.readers import pdf

        return lambda content, _, __: [pdf.read(content)]
    if kind == "docx":
        from server.knowledge.readers import docx

        return lambda content, _, __: [docx.read(content)]
    if kind == "faq":
        return lambda content, name, encoding: [plain.faq(content, suffix(name), encoding)]
    if kind == "markdown":
        return lambda content, _, encoding: [markdown.read(plain.decoded(content, encoding))]
    if kind == "jsonl":
        return lambda content, _, encoding: plain.json_lines(plain.decoded(content, encoding))
    return lambda content, _, encoding: [plain.read(plain.decoded(content, encoding))]
