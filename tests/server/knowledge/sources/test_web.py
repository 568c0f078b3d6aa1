"""Pages over HTTP, from a website on this machine."""

import gzip
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.x509.oid import NameOID

from server.errors import ConfigError, KnowledgeError
from server.knowledge.search import Knowledge
from tests.server.knowledge.conftest import Builder
from tests.server.knowledge.sources.website import Answer, Website, website


@pytest.fixture
def site() -> Iterator[Website]:
    with website() as found:
        found.page("/a", "Opening hours", "The shop is open from nine.")
        found.page("/b", "Returns", "Bring the parcel to any counter.")
        found.sitemap("/a", "/b")
        yield found


SOURCE = '[[sources]]\nrequests_a_second = 100\nprivate_addresses = ["127.0.0.1"]\n'


def sitemap(site: Website, more: str = "") -> str:
    return f'{SOURCE}sitemap = "{site.address}/sitemap.xml"\n{more}'


def urls(*addresses: str) -> str:
    return f"{SOURCE}urls = [{', '.join(f'{one!r}' for one in addresses)}]"


NETWORK = "network = true"


def titles(tmp_path: Path) -> list[str]:
    return [document.title for document in Knowledge.open(tmp_path / "knowledge").documents()]


def test_a_sitemaps_pages_are_read_with_their_addresses(tmp_path: Path, site: Website, built: Builder) -> None:
    built(sitemap(site), NETWORK)
    best = Knowledge.open(tmp_path / "knowledge").search("when is the shop open")[0]
    assert best.passage.text == "The shop is open from nine."
    assert best.passage.url == f"{site.address}/a"
    assert "Home" not in best.passage.text
    assert site.paths() == ["/robots.txt", "/sitemap.xml", "/a", "/b"]


def test_without_network_nothing_is_asked(site: Website, built: Builder) -> None:
    with pytest.raises(ConfigError, match="needs `network = true`"):
        built(sitemap(site))
    assert site.asked == []


def test_a_private_address_is_not_connected_to_unless_it_is_named(site: Website, built: Builder) -> None:
    with pytest.raises(KnowledgeError, match=r"is the private address 127\.0\.0\.1: name it"):
        built(sitemap(site).replace('private_addresses = ["127.0.0.1"]', ""), NETWORK)
    assert site.asked == []


def test_a_page_is_asked_for_only_if_it_changed(tmp_path: Path, site: Website, built: Builder) -> None:
    site.page("/a", "Opening hours", "The shop is open from nine.", ETag='"1"')
    built(sitemap(site), NETWORK)
    site.asked.clear()
    site.answers["/a"] = lambda headers: Answer(status=304 if headers.get("if-none-match") == '"1"' else 500)
    again = built(sitemap(site), NETWORK)
    assert (again.counts.read, again.counts.unchanged, again.changed) == (1, 1, False)  # /b has no ETag
    site.page("/a", "Opening hours", "The shop is open from ten.", ETag='"2"')
    site.sitemap("/a")
    final = built(sitemap(site), NETWORK)
    assert (final.counts.read, final.counts.gone) == (1, 1)
    assert titles(tmp_path) == ["Opening hours"]
    assert "ten" in Knowledge.open(tmp_path / "knowledge").search("open")[0].passage.text


def test_a_page_that_fails_for_a_while_keeps_its_text_and_one_that_is_gone_does_not(
    tmp_path: Path, site: Website, built: Builder
) -> None:
    built(sitemap(site), NETWORK)
    site.answers["/a"], site.answers["/b"] = Answer(status=500), Answer(status=410)
    made = built(sitemap(site), NETWORK)
    assert [(one.reason, one.kept) for one in made.failed] == [
        ("the server answers with status 500", True),
        ("the server says that it is gone (410)", False),
    ]
    assert titles(tmp_path) == ["Opening hours"]


def test_a_sitemap_that_fails_changes_nothing(tmp_path: Path, site: Website, built: Builder) -> None:
    built(sitemap(site), NETWORK)
    for answer in (Answer(status=404), Answer("<urlset", 200), Answer("<html/>", 200)):
        site.answers["/sitemap.xml"] = answer
        with pytest.raises(KnowledgeError, match=r"the sitemap .* cannot be read"):
            built(sitemap(site), NETWORK)
    assert titles(tmp_path) == ["Opening hours", "Returns"]


def test_robots_txt_is_obeyed_and_asked_once(site: Website, built: Builder) -> None:
    site.answers["/robots.txt"] = Answer("User-agent: *\nDisallow: /b\n")
    made = built(sitemap(site), NETWORK)
    assert [one.reason for one in made.failed] == ["robots.txt forbids it"]
    assert site.paths() == ["/robots.txt", "/sitemap.xml", "/a"]
    site.answers["/a"] = Answer(status=302, headers={"Location": "/b"})
    site.sitemap("/a", "/c")
    site.page("/c", "Hours", "Open.")
    assert [one.reason for one in built(sitemap(site), NETWORK).failed] == ["robots.txt forbids it"]
    assert "/b" not in site.paths()


def test_documents_beyond_the_limit_are_counted(tmp_path: Path, site: Website, pages: Path, built: Builder) -> None:
    files = '[[sources]]\npath = "pages"\nmost_documents = 1'
    made = built(f"{sitemap(site, 'most_documents = 1')}\n{files}", NETWORK)
    assert [one.reason for one in made.failed] == ["it has 2 documents, of which 1 are read (`most_documents`)"] * 2
    assert titles(tmp_path) == ["Opening hours", "Opening hours"]


def test_a_robots_txt_that_cannot_be_read_forbids_everything(site: Website, built: Builder) -> None:
    site.answers["/robots.txt"] = Answer(status=503)
    with pytest.raises(KnowledgeError, match=r"robots\.txt of .* cannot be read"):
        built(sitemap(site), NETWORK)
    assert site.paths() == ["/robots.txt"]


def test_no_redirect_leaves_the_hosts(site: Website, built: Builder) -> None:
    with website() as other:
        other.page("/secret", "Secret", "The password is swordfish.")
        site.answers["/a"] = Answer(status=302, headers={"Location": f"{other.address}/secret"})
        site.answers["/b"] = Answer(status=301, headers={"Location": "/c"})
        site.page("/c", "Moved", "It lies here.")
        made = built(sitemap(site), NETWORK)
        assert other.asked == []
    assert made.documents == 1
    assert "is not among the source's `hosts`" in made.failed[0].reason


@pytest.mark.parametrize("target", ["file:///etc/passwd", "http://u:p@127.0.0.1/", "gopher://127.0.0.1/", "//[::1]/x"])
def test_a_redirect_to_another_scheme_or_place_is_refused(site: Website, built: Builder, target: str) -> None:
    site.answers["/a"] = Answer(status=302, headers={"Location": target})
    assert [one.document for one in built(sitemap(site), NETWORK).failed] == [f"{site.address}/a"]


def test_redirects_in_a_circle_end(site: Website, built: Builder) -> None:
    site.answers["/a"] = Answer(status=302, headers={"Location": "/a"})
    assert "redirects more than 5 times" in built(sitemap(site), NETWORK).failed[0].reason


def test_an_index_of_compressed_sitemaps_is_followed(tmp_path: Path, site: Website, built: Builder) -> None:
    inner = site.answers["/sitemap.xml"]
    assert isinstance(inner, Answer)
    assert isinstance(inner.body, str)
    site.answers["/inner.xml.gz"] = Answer(gzip.compress(inner.body.encode()))
    places = [f"<sitemap><loc>{site.address}{path}</loc></sitemap>" for path in ("/inner.xml.gz", "/sitemap.xml")]
    site.answers["/sitemap.xml"] = Answer(f"<sitemapindex>{''.join(places)}</sitemapindex>")
    built(sitemap(site), NETWORK)
    assert titles(tmp_path) == ["Opening hours", "Returns"]


def test_a_gzip_body_is_bounded(site: Website, built: Builder) -> None:
    bomb = gzip.compress(b"a" * (3 << 20))
    site.answers["/a"] = Answer(bomb, headers={"Content-Type": "text/html", "Content-Encoding": "gzip"})
    made = built(sitemap(site), f"{NETWORK}\ndocument_megabytes = 2")
    assert "unpacks to more than 2 MB" in made.failed[0].reason
    site.answers["/a"] = Answer(b"a" * (3 << 20))
    made = built(sitemap(site), f"{NETWORK}\ndocument_megabytes = 2")
    assert "has more than 2 MB" in made.failed[0].reason


def certificate(path: Path) -> Path:
    """A key and its own certificate for this machine, as PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
    made = made.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    path.write_bytes(key.private_bytes(*form) + made.sign(key, SHA256()).public_bytes(form[0]))
    return path


def test_tls_is_verified_and_no_redirect_leads_out_of_it(
    tmp_path: Path, site: Website, built: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem = certificate(tmp_path / "site.pem")
    with website(pem) as secure:
        secure.page("/a", "Opening hours", "The shop is open from nine.")
        secure.answers["/b"] = Answer(status=302, headers={"Location": f"{site.address}/b"})
        pages = urls(f"{secure.address}/a", f"{secure.address}/b")
        with pytest.raises(KnowledgeError, match="certificate verify failed"):
            built(pages, NETWORK)
        monkeypatch.setenv("SSL_CERT_FILE", str(pem))
        made = built(pages, NETWORK)
    assert titles(tmp_path) == ["Opening hours"]
    assert "redirects from https to http" in made.failed[0].reason
    assert site.asked == []


def test_a_list_of_urls_is_read_and_a_pattern_leaves_pages_out(tmp_path: Path, site: Website, built: Builder) -> None:
    built(urls(f"{site.address}/a#top", f"{site.address}/b") + '\nexclude = ["*/b"]', NETWORK)
    assert titles(tmp_path) == ["Opening hours"]
