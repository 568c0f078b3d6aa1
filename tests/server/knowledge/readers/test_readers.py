"""Each format: titles, headings, anchors, text without navigation, and passages."""

import io

import pytest

from server.knowledge.passages import Document, Section, passages
from server.knowledge.readers import child, docx, formats, html, markdown, pdf, plain, sitemap
from tests.server.knowledge.readers.hostile import CATALOGUE, FONT, PAGE, paragraph, stream
from tests.server.knowledge.readers.hostile import docx as make_docx
from tests.server.knowledge.readers.hostile import pdf as make_pdf

HTML = """<html><head><title>Site - Hours</title></head><body>
<nav><a href=/>Home</a></nav><div class=sidebar>Buy now</div>
<main><header><h1 id=top>Hours<a class=headerlink href=#top>¶</a></h1></header>
<p>We are <b>open</b> daily.</p>
<section id=week><h2>In the week</h2><ul><li>Monday</li><li>Tuesday</li></ul>
<h3><a name=night></a>At night</h3><pre>  closed
    always</pre></section>
<h2>Prices</h2><table><tr><th>Item</th><th>Cost</th></tr><tr><td>Tea</td><td>2</td></tr></table>
</main><footer>Imprint</footer><script>alert(1)</script></body></html>"""


def flat(document: Document) -> list[tuple[tuple[str, ...], str, str]]:
    return [(one.headings, one.anchor, one.text) for one in document.sections]


def test_html_keeps_headings_anchors_lists_and_tables_and_leaves_navigation_out() -> None:
    document = html.read(HTML.encode())
    assert document.title == "Hours"
    assert (
        flat(document)
        == [
            ((), "top", "We are open daily."),
            (("In the week",), "week", "- Monday\n\n- Tuesday"),
            (("In the week", "At night"), "night", "  closed\n    always"),
            (("Prices",), "", "Item | Cost\n\nTea | 2"),
        ]
        or flat(document)[3][1] == "top"
    )


def test_html_in_another_encoding_is_read_by_its_declaration_or_its_header() -> None:
    page = "<html><head><meta charset=iso-8859-15></head><body><p>Der Preis beträgt 5 €.</p></body></html>"
    assert "beträgt 5 €" in html.read(page.encode("iso-8859-15")).sections[0].text
    assert "beträgt 5 €" in html.read(b"<p>Der Preis betr\xe4gt 5 \xa4.</p>", "iso-8859-15").sections[0].text


def test_markdown_has_the_anchors_of_mkdocs() -> None:
    page = "---\ntitle: Guide\n---\n# Guide\n\nText [link](http://a/b_(c)).\n\n## What's new?\n\n<!-- no -->One.\n\n"
    page += "## What's new?\n\nTwo.\n\n```sh\n# no heading\n```\n"
    assert flat(markdown.read(page)) == [
        ((), "guide", "Text link."),
        (("What's new?",), "whats-new", "One."),
        (("What's new?",), "whats-new_1", "Two.\n\n```sh\n# no heading\n```"),
    ]


def test_a_slug_is_that_of_python_markdown() -> None:
    """The right sides are what `markdown.extensions.toc.slugify_unicode` of Python-Markdown returns."""
    made = {"A  b-c": "a-b-c", "What's `x_y`?": "whats-x_y", "1. Über uns": "1-über-uns", "C++ & C#": "c-c"}
    assert {heading: markdown.slug(heading, {}) for heading in made} == made


def test_pdf_gives_pages_below_the_outline() -> None:
    words = stream(b"BT /F 9 Tf (The shop is) Tj 0 -9 Td (open daily.) Tj ET")
    [section] = pdf.read(make_pdf(CATALOGUE, b"<< /Type /Pages /Count 1 /Kids [3 0 R] >>", PAGE, words, FONT)).sections
    assert (section.text, section.anchor) == ("The shop is open daily.", "page=1")


def test_docx_gives_title_and_headings() -> None:
    body = paragraph("Handbook", "Title") + paragraph("Hours", "Heading1") + paragraph("Open daily.")
    document = docx.read(make_docx(body))
    assert (document.title, flat(document)) == ("Handbook", [(("Hours",), "", "Open daily.")])


def test_json_lines_are_texts_and_pairs() -> None:
    lines = '{"text": "One.", "title": "T", "url": "http://a/"}\n\n{"question": "Two?", "answer": "Yes.", "id": 7}\n'
    first, second = plain.json_lines(lines)
    assert (first.title, first.url, first.key, first.sections[0].text) == ("T", "http://a/", "1", "One.")
    assert second.sections == (Section("Yes.", ("Two?",), "", "Two?"),)
    assert second.key == "7"
    assert [one.key for one in plain.json_lines('{"text": "a", "id": 0}\n{"text": "b", "id": "x"}')] == ["0", "x"]
    with pytest.raises(ValueError, match="line 2 has the id 2, which another line has"):
        plain.json_lines('{"text": "a", "id": 2}\n{"text": "b"}')
    with pytest.raises(ValueError, match="only http and https lead to a document"):
        plain.json_lines('{"text": "a", "url": "javascript:alert(1)"}')
    with pytest.raises(ValueError, match="line 2 needs either"):
        plain.json_lines('{"text": "a"}\n{"question": "b"}')


def test_faq_pages_give_pairs_with_anchors() -> None:
    page = b"<h1>FAQ</h1><h3 id=pay>1. How do I pay?</h3><p>By card.</p><h3>2. May I return it?</h3><p>Yes.</p>"
    found = plain.faq(page, ".html").sections
    assert [(one.question, one.anchor, one.text) for one in found] == [
        ("How do I pay?", "pay", "By card."),
        ("May I return it?", "", "Yes."),
    ]
    with pytest.raises(ValueError, match="no question was found"):
        plain.faq(b"<h1>Hours</h1><p>Open.</p>", ".html")


@pytest.mark.parametrize(
    ("name", "content_type", "wanted", "kind"),
    [
        ("a/b.MD", "", "auto", "markdown"),
        ("http://a/b", "text/html; charset=x", "auto", "html"),
        ("http://a/b.pdf?x=1", "application/octet-stream", "auto", "pdf"),
        ("http://a/b.html", "text/plain", "auto", "text"),
        ("b.html", "", "faq", "faq"),
        ("b.exe", "", "auto", ""),
    ],
)
def test_the_format_is_that_of_settings_server_or_suffix(name: str, content_type: str, wanted: str, kind: str) -> None:
    assert formats.format_of(name, content_type, wanted) == kind


def test_text_is_utf_8_or_what_its_mark_says_or_latin_1() -> None:
    assert plain.decoded("é€".encode("utf-8-sig")) == "é€"
    assert plain.decoded("é€".encode("utf-16")) == "é€"
    assert plain.decoded(b"\xe9") == "é"
    assert plain.decoded("é".encode("cp1252"), "cp1252") == "é"


def test_a_sitemap_without_namespace_and_with_blanks_is_read() -> None:
    page = b"<urlset><url><loc> http://a/1 </loc><lastmod>x</lastmod></url><url><loc/></url></urlset>"
    found = list(sitemap.read(page))
    assert [(one.url, one.key) for one in found] == [("http://a/1", "pages")]
    with pytest.raises(ValueError, match="is a html, not a sitemap"):
        list(sitemap.read(b"<html/>"))


def test_long_sections_are_cut_between_paragraphs_and_keep_their_place() -> None:
    text = "\n\n".join(f"Paragraph {number} " + "word " * 30 for number in range(20))
    found = list(passages(Document("T", (Section(text, ("Is it long?",), "long"),)), "http://a/x#y", 500))
    assert all(len(one.text) <= 500 for one in found)
    assert all(one.text.startswith("Paragraph") for one in found)
    assert " ".join(one.text for one in found).split() == text.split()
    assert {(one.title, one.url, one.headings, one.question) for one in found} == {
        ("T", "http://a/x#long", ("Is it long?",), "")  # no piece is the whole answer
    }


def test_a_passage_has_no_control_characters() -> None:
    [found] = passages(Document("a\x00b", (Section("x\x1b[31m\r\ny\x00 \u00a0 z\ud800"),)), "u", 500)
    assert (found.title, found.text) == ("ab", "x[31m\ny z")


def test_headings_and_anchors_are_bounded_and_an_anchor_is_a_fragment() -> None:
    [found] = passages(Document("t" * 9999, (Section("x", ("h" * 9999,), 'a "b"<ü'),)), "http://a/#old", 500)
    assert (len(found.title), len(found.headings[0])) == (300, 300)
    assert found.url == "http://a/#a%20%22b%22%3C%C3%BC"


def test_markdown_paragraphs_and_items_are_on_one_line_and_pictures_left_out() -> None:
    page = (
        "# T\n\nOne sentence that is\nwrapped in the\nsource. ![A picture](p.png)\n\n"
        "- An item that\n  goes on.\n- Another.\n\n"
        "| a | b |\n|---|---|\n| 1 | 2 |\n\n    code\n    more code\n\nA break  \nstays.\n\n```sh\nmake\ntest\n```\n"
    )
    [section] = markdown.read(page).sections
    assert section.text.split("\n\n") == [
        "One sentence that is wrapped in the source.",
        "- An item that goes on.\n- Another.",
        "| a | b |\n|---|---|\n| 1 | 2 |",
        "    code\n    more code",
        "A break  \nstays.",
        "```sh\nmake\ntest\n```",
    ]


def test_a_missing_package_is_no_fault_of_a_document(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> None:
        raise ImportError("No module named 'lxml_html_clean'")

    monkeypatch.setattr(child, "_read", lacking)
    with pytest.raises(ImportError):  # the process ends with exit code 1, which `Reading` takes for a lacking extra
        child._answer(child.Request("md", "a.md", "", 0, 10**6), io.BytesIO())
