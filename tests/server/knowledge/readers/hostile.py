"""Documents made to exhaust, confuse or escape their reader; each is small where it lies."""

import os
import struct
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

TYPES = (
    '<?xml version="1.0"?><Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
    '<Default Extension="xml" ContentType="application/xml"/><Default Extension="rels" '
    'ContentType="application/vnd.openxmlformats-package.relationships+xml"/><Override PartName="/word/document.xml" '
    'ContentType="application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>'
)
RELATIONS = '<?xml version="1.0"?><Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">{}</Relationships>'
OFFICE = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
WORD = "http://schemas.openxmlformats.org/wordprocessingml/2006/main"
MAIN = RELATIONS.format(f'<Relationship Id="r1" Type="{OFFICE}/officeDocument" Target="word/document.xml"/>')


def docx(body: str, *, head: str = "", relations: str = "", more: dict[str, bytes] | None = None) -> bytes:
    """A Word document with this XML in its body."""
    file = BytesIO()
    with ZipFile(file, "w", ZIP_DEFLATED) as parts:
        parts.writestr("[Content_Types].xml", TYPES)
        parts.writestr("_rels/.rels", MAIN)
        parts.writestr("word/_rels/document.xml.rels", RELATIONS.format(relations))
        document = f'<w:document xmlns:w="{WORD}" xmlns:r="{OFFICE}"><w:body>{body}</w:body></w:document>'
        parts.writestr("word/document.xml", f'<?xml version="1.0"?>{head}{document}')
        for name, content in (more or {}).items():
            parts.writestr(name, content)
    return file.getvalue()


def paragraph(text: str, style: str = "") -> str:
    named = f'<w:pPr><w:pStyle w:val="{style}"/></w:pPr>' if style else ""
    return f"<w:p>{named}<w:r><w:t>{text}</w:t></w:r></w:p>"


def zip_bomb() -> bytes:
    return docx(paragraph("small"), more={"word/media/a.bin": b"\0" * (300 << 20)})


def lying_zip() -> bytes:
    """Its directory says that the text has a few bytes, which unpack to a hundred megabytes."""
    whole = bytearray(docx(paragraph("a" * (100 << 20))))
    size = struct.pack("<I", 60)
    for mark, place in ((b"PK\x01\x02", 24), (b"PK\x03\x04", 22)):
        at = whole.find(mark)
        while at >= 0:
            name = at + (46 if mark == b"PK\x01\x02" else 30)
            if whole[name : name + 17] == b"word/document.xml":
                whole[at + place : at + place + 4] = size
            at = whole.find(mark, at + 4)
    return bytes(whole)


def laughing_docx() -> bytes:
    """A billion laughs: entities that expand to a gigabyte."""
    lines = ['<!ENTITY a "ha ha ha ha ha ha ha ha ha ha">']
    lines += [f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)]
    return docx(paragraph("&j;"), head=f"<!DOCTYPE w:document [{''.join(lines)}]>")


def peeping_docx() -> bytes:
    """Its text is an external entity, a file of this machine."""
    return docx(paragraph("&x;"), head='<!DOCTYPE w:document [<!ENTITY x SYSTEM "file:///etc/passwd">]>')


def pdf(*objects: bytes) -> bytes:
    """A PDF of these objects, numbered from 1; the first is the catalogue."""
    content, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(len(content))
        content += b"%d 0 obj\n%s\nendobj\n" % (number, one)
    table = b"".join(b"%010d 00000 n \n" % place for place in places)
    start = len(content)
    count = len(objects) + 1
    content += b"xref\n0 %d\n0000000000 65535 f \n%strailer\n<< /Size %d /Root 1 0 R >>\n" % (count, table, count)
    return content + b"startxref\n%d\n%%%%EOF\n" % start


CATALOGUE = b"<< /Type /Catalog /Pages 2 0 R >>"
FONT = b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"
PAGE = b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] /Contents 4 0 R /Resources << /Font << /F 5 0 R >> >> >>"


def stream(data: bytes) -> bytes:
    packed = zlib.compress(data, 9)
    return b"<< /Length %d /Filter /FlateDecode >>\nstream\n%s\nendstream" % (len(packed), packed)


def page_of(data: bytes) -> bytes:
    return pdf(CATALOGUE, b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>", PAGE, stream(data), FONT)


def looping_pdf() -> bytes:
    """A page tree whose child is itself."""
    return pdf(CATALOGUE, b"<< /Type /Pages /Count 9 /Kids [2 0 R 2 0 R] >>")


def endless_outline() -> bytes:
    """An outline whose next entry is itself."""
    entry = b"<< /Title (again) /Next 6 0 R /Prev 6 0 R /Parent 7 0 R /Dest [3 0 R /Fit] >>"
    outlines = b"<< /Type /Outlines /First 6 0 R /Last 6 0 R /Count 1 >>"
    catalogue = b"<< /Type /Catalog /Pages 2 0 R /Outlines 7 0 R >>"
    kids = b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>"
    return pdf(catalogue, kids, PAGE, stream(b"BT /F 9 Tf (Some words.) Tj ET"), FONT, entry, outlines)


def swelling_pdf() -> bytes:
    """A page whose content unpacks to 400 megabytes."""
    return page_of(b" " * (400 << 20))


def deep_html() -> bytes:
    return b"<html><body>" + b"<div>" * 200_000 + b"deep" + b"</div>" * 200_000


def restless_markdown() -> bytes:
    """Comments that begin and never end, which a careless pattern reads in quadratic time."""
    return b"<!--" * 2_000_000


DOCUMENTS: dict[str, Callable[[], bytes]] = {
    "zip_bomb.docx": zip_bomb,
    "lying_zip.docx": lying_zip,
    "laughing.docx": laughing_docx,
    "peeping.docx": peeping_docx,
    "no_zip.docx": lambda: b"PK\x03\x04" + b"\xff" * 1000,
    "looping.pdf": looping_pdf,
    "swelling.pdf": swelling_pdf,
    "no_pdf.pdf": lambda: b"%PDF-1.7\n" + bytes(range(256)) * 100,
    "cut.pdf": lambda: page_of(b"BT /F 9 Tf (Half.) Tj ET")[:200],
    "huge.html": lambda: b"<p>x</p>" * (3 << 20),
    "nul.txt": lambda: b"\x00\x01\x02" * 1000,
    "nul.html": lambda: b"\x00<html>" * 1000,
    "restless.md": restless_markdown,
    "deep.jsonl": lambda: b"[" * 1_000_000,
    "wrong.jsonl": lambda: b'{"text": 3}',
    "empty.md": lambda: b"",
    "blank.html": lambda: b"   \n",
}
"""Documents that cannot be read within the limits, by name."""


def write_links(folder: Path) -> None:
    """Links and special files, which lead out of a folder or nowhere."""
    outside = folder.parent / "outside"
    outside.mkdir()
    (outside / "secret.md").write_text("# Secret\n\nThe password is swordfish.\n")
    (folder / "link.md").symlink_to(outside / "secret.md")
    (folder / "up").symlink_to(outside)
    (folder / "circle.md").symlink_to(folder / "circle.md")
    (folder / "loop").symlink_to(folder)
    (folder / "dangling.md").symlink_to(folder / "nothing.md")
    os.mkfifo(folder / "pipe.md")
