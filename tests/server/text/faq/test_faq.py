"""FAQ pages to pairs: made-up pages whose pairs are known, then the FAQs that Debian packages."""

import re
from pathlib import Path

import pytest

from pruning.commands.task import from_faq
from pruning.errors import TaskError
from pruning.evaluation.tasks import task as tasks
from pruning.evaluation.tasks.reading import read_task
from server.commands.__main__ import main
from server.text.faq import html, markdown, pod
from server.text.faq.blocks import QuestionAnswer, pairs
from tests.conftest import ROOT

SHARES = (Path("/usr/share"), ROOT / "build/faq/usr/share")  # installed, or unpacked by tests/install


def found(reader: object, page: str) -> dict[str, str]:
    return dict(pairs(reader.blocks(page)))  # type: ignore[attr-defined]


def test_headings_of_html_without_navigation() -> None:
    page = """<html><head><title>What is this?</title></head><body><nav><h3>Where am I?</h3></nav>
    <h1>All about pears</h1><p>Preface.</p>
    <div class="toc"><dl><dt>1.1. What is a pear?</dt></dl></div>
    <h2>1 Basics</h2><p>These are the basics.</p>
    <h3>1.1. What is a <b>pear</b>?<a class="headerlink" href="#x">¶</a></h3>
      <p>A fruit,
         <em>sweet</em> &amp; green.</p><ul><li>It grows.</li><li>On trees.</li></ul><!-- no -->
      <h4>A note</h4><pre>pear   = 1
    eat(pear)</pre><script>bad()</script>
    <h3>1.2 Who eats pears</h3><p>We do.</p>
    <h3>1.3 Is this empty?</h3>
    <h2>2 More</h2><p>Not an answer.</p>
    <h3>Notation</h3><p>Not a question.</p></body></html>"""
    assert found(html, page) == {
        "What is a pear?": "A fruit, sweet & green.\n\nIt grows.\n\nOn trees.\n\nA note\n\npear   = 1\n    eat(pear)",
        "Who eats pears": "We do.",
    }


def test_terms_and_bold_paragraphs_of_html() -> None:
    page = """<dl><dt>Why?</dt><dd><p>Because.</p><dl><dt>a term</dt><dd>its meaning</dd></dl></dd>
    <dt>How so?</dt><dd>So.</dd></dl><p>After the list.</p>"""
    assert found(html, page) == {"Why?": "Because.\n\na term\n\nits meaning", "How so?": "So."}
    page = "<p><b>(1) Why?</b></p><blockquote>Because <b>I</b> say so.</blockquote><p> <b>(2) How?</b></p>So."
    assert found(html, page) == {"Why?": "Because I say so.", "How?": "So."}


def test_omitted_html_tags() -> None:
    assert found(html, "<dl><dt>Why?<dd>Because.<dt>How?<dd>So.</dl>") == {"Why?": "Because.", "How?": "So."}
    assert found(html, "<p><b>Why?</b><p>Because.<p><b>How?</b><p>So.") == {"Why?": "Because.", "How?": "So."}
    many = "<h2>Why?</h2>" + "<p>Because." * 2000  # each of which was within the one before
    assert len(found(html, many)["Why?"].split()) == 2000


def test_markdown() -> None:
    page = "# FAQ\n\nHello.\n\n## What is `x`?\n\nIt is\n**x**.\n\n```sh\n# Is this a heading?\n\nno\n```\n\n"
    page += "How?\n----\nSo.\n\n## [Why](http://a)? ##\n\nA: Because.\n"
    assert found(markdown, page) == {
        "What is x?": "It is\n**x**.\n\n```sh\n# Is this a heading?\n\nno\n```",
        "How?": "So.",
        "Why?": "Because.",
    }
    assert found(markdown, "**What?**\n\nThat.\n\n**Why?**\nSo.") == {"What?": "That.", "Why?": "So."}
    assert found(markdown, "Q: What?\nA: That.\n\nQ: Why?\nA: So.") == {"What?": "That.", "Why?": "So."}
    folded = "<details>\n<summary>What?</summary>\n\nThat.\n\n</details>\n"
    assert found(markdown, folded) == {"What?": "That."}


def test_pod() -> None:
    page = (
        "use strict;\n\n=head1 NAME\n\nfaq\n\n=head2 What is C<< $x->{y} >> or B<I<z>>?\n\nSee L<the page|http://a/b>"
    )
    page += (
        "\nand F<file>X<index>, I<E<lt>thatE<gt>>, E<eacute>.\n\n  my $x = <STDIN>;\n\n=over\n\n=item 1.\n\nOne.\n\n"
    )
    page += "=back\n\n=begin html\n\n<p>no</p>\n\n=end html\n\n=head2 Why?\n\nSo.\n\n=cut\n\nsub no {}\n"
    assert found(pod, page) == {
        "What is $x->{y} or z?": "See the page and file, <that>, eacute.\n\n  my $x = <STDIN>;\n\n1.\n\nOne.",
        "Why?": "So.",
    }


def test_the_command_writes_a_task_that_can_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = tmp_path / "pages"
    pages.mkdir()
    (pages / "a.md").write_text("# What is a?\nThe first.\n# What is b?\nThe second.")
    (pages / "b.md").write_text("# What is a?\nThe first.\n# What is c?\nThe third.")
    (pages / "c.html").write_bytes("<h2>Caf\xe9 or tea?</h2>Caf\xe9.".encode("latin-1"))
    (pages / "d.txt").write_text("# What is d?\nIgnored.")
    output = tmp_path / "out" / "my faq.toml"
    assert main(["task", "from-faq", str(pages), "--output", str(output)]) == 0
    assert "4 question/answer pairs from 3 pages" in capsys.readouterr().out
    task = read_task(output)
    assert isinstance(task, tasks.PairsTask)
    assert [(i.question, i.answer) for i in task.items if isinstance(i, tasks.Pair)] == [
        ("What is a?", "The first."),
        ("What is b?", "The second."),
        ("What is c?", "The third."),
        ("Café or tea?", "Café."),
    ]
    before = {path: path.read_bytes() for path in output.parent.iterdir()}
    assert main(["task", "from-faq", str(pages), "--output", str(output)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in output.parent.iterdir()} == before


@pytest.mark.parametrize(
    ("name", "page", "output", "sentence"),
    [
        ("a.md", "# Title\nText.", "x.toml", "no question was found in 1 pages"),
        ("a.pdf", "", "x.toml", "is no page: its name must end in one of .html"),
        ("a.md", "# Why?\nSo.", "x.jsonl", "name it .*x.toml"),
    ],
)
def test_pages_without_a_usable_task_are_refused(
    tmp_path: Path, name: str, page: str, output: str, sentence: str
) -> None:
    (tmp_path / name).write_text(page)
    with pytest.raises(TaskError, match=sentence):
        from_faq([tmp_path / name], tmp_path / "out" / output)
    with pytest.raises(TaskError, match="is not there"):
        from_faq([tmp_path / "missing.md"], tmp_path / "out" / "x.toml")
    assert not (tmp_path / "out").exists()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.md").write_text("# Why?\nSo.")
    (tmp_path / "file").write_text("")
    assert main(["task", "from-faq", str(tmp_path / "a.md"), "--output", str(tmp_path / "file" / "x.toml")]) == 2
    assert f"{tmp_path}/file cannot be written: File exists" in capsys.readouterr().err
    assert main(["task", "from-faq", str(tmp_path / "a.md"), "--output", "/"]) == 2
    assert "/: the task is a TOML file: name it /task.toml" in capsys.readouterr().err


DEBIAN = {
    # package: its pages below /usr/share, the least number of pairs, a question and the beginning of its answer
    "debian-faq": ("doc/debian/FAQ/*.en.html", 121, "Where does Debian come from?", ""),
    "python3-doc": ("doc/python3*/html/faq/*.html", 170, "How stable is Python?", "Very stable."),
    "perl-doc": ("perl/5*/pod/perlfaq[1-9].pod", 300, "What is Perl?", "Perl is a high-level programming language"),
    "r-doc-html": ("doc/r-doc-html/manual/R-FAQ.html", 75, "What is CRAN?", "The “Comprehensive R Archive Network”"),
    "apache2-doc": (
        "doc/apache2-doc/manual/en/ssl/ssl_faq.html",
        37,
        "Which port does HTTPS use?",
        "You can run HTTPS",
    ),
    "git-doc": ("doc/git-doc/gitfaq.html", 22, "Can I use a proxy with Git?", "Yes, Git supports the use of proxies."),
    "sqlite3-doc": ("doc/sqlite3/faq.html", 28, "Does SQLite support a BLOB type?", "SQLite allows you to store BLOB"),
}


def pages_of(package: str) -> list[Path]:
    pages = [page for share in SHARES for page in sorted(share.glob(DEBIAN[package][0]))]
    if not pages:
        pytest.skip(f"the pages of Debian's {package} are not here: tests/install unpacks them into build/faq")
    return list({page.name: page for page in pages}.values())


def debian(package: str) -> list[QuestionAnswer]:
    return [
        pair
        for page in pages_of(package)
        for pair in pairs((pod if page.suffix == ".pod" else html).blocks(page.read_text(errors="replace")))
    ]


@pytest.mark.parametrize("package", DEBIAN)
def test_the_faqs_that_debian_packages(package: str) -> None:
    _, least, question, answer = DEBIAN[package]
    pairs_found = debian(package)
    assert least <= len(pairs_found) <= 1.1 * least
    by_question = dict(pairs_found)
    if question in by_question:
        assert by_question[question].startswith(answer)
    else:
        assert not answer
    asking = [pair for pair in pairs_found if "?" in pair.question]
    assert len(asking) >= 0.75 * len(pairs_found)
    assert not [pair for pair in pairs_found if re.search(r"[¶]|&\w+;|^\d+\.\d", pair.question)]


def test_no_question_of_the_packaged_pages_is_missed() -> None:
    """Counted in another way: POD's headings by line, and the tables of contents of HTML pages."""
    headings = [line for page in pages_of("perl-doc") for line in re.findall(r"^=head2 (.*)", page.read_text(), re.M)]
    assert len(debian("perl-doc")) == len(headings) - headings.count("Perl Books")
    for package, entry in {
        "python3-doc": r'<a class="reference internal" href="#[^"]*" id="[^"]*">(.*?)</a>',
        "debian-faq": r'<dt><span class="section"><a href="[\w.-]*#[^"]*">(?:[\d.]+ )(.*?)</a></span></dt>',
    }.items():
        known = {re.sub(r"\W+", " ", pair.question) for pair in debian(package)}
        pages = [page.read_text() for page in pages_of(package) if "index" not in page.name]
        listed = {re.sub(r"<[^>]+>", "", text) for page in pages for text in re.findall(entry, page, re.S)}
        asked = {" ".join(text.split()) for text in listed if text.endswith("?") and "&" not in text}
        missed = {text for text in asked if re.sub(r"\W+", " ", text) not in known}
        assert len(asked) > 80
        assert not missed
