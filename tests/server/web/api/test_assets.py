"""How the widget's files are served: caching, revalidation, encodings, and who may load them."""

import base64
import gzip
import hashlib
from pathlib import Path

import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from server.errors import ConfigError
from server.web.api.assets import accepts, matches, routes
from tests.conftest import ROOT

ASSETS = ROOT / "server/web/assets/widget"
LOADER = "/widget.js"
FILES = {path.name: path for path in ASSETS.rglob("*") if path.suffix in (".js", ".json")}
PARTS = sorted(name for name in FILES if name.startswith("app-"))
APP = f"/assets/{next(name for name in PARTS if name.count('-') == 1)}"
CHUNKS = sorted(name for name in FILES if name.startswith("chunk-"))
PLAIN = {"Accept-Encoding": "identity"}


@pytest.fixture
def client() -> TestClient:
    return TestClient(Starlette(routes=list(routes(ASSETS))))


@pytest.mark.parametrize("path", [LOADER, *(f"/assets/{name}" for name in [*PARTS, *CHUNKS])])
def test_any_page_may_load_the_files_and_no_browser_sniffs_their_type(client: TestClient, path: str) -> None:
    response = client.get(path, headers=PLAIN)
    assert response.content == FILES[path.rsplit("/")[-1]].read_bytes()
    assert response.headers["content-type"] == "text/javascript; charset=utf-8"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["access-control-allow-origin"] == "*"
    assert response.headers["cross-origin-resource-policy"] == "cross-origin"
    assert response.headers["vary"] == "Accept-Encoding"
    assert "set-cookie" not in response.headers


def test_the_loader_is_cached_briefly_and_the_app_for_ever(client: TestClient) -> None:
    assert client.get(LOADER).headers["cache-control"] == "public, max-age=300, stale-while-revalidate=86400"
    assert client.get(APP).headers["cache-control"] == "public, max-age=31536000, immutable"


def test_an_earlier_releases_app_is_answered_with_the_current_one_uncached(client: TestClient) -> None:
    response = client.get("/assets/app-000000000000.js", headers=PLAIN)
    assert response.content == client.get(APP, headers=PLAIN).content
    assert response.headers["cache-control"] == "no-store"


def test_an_earlier_releases_language_is_answered_with_the_current_one_uncached(client: TestClient) -> None:
    """An open or cached app asks for the texts of its own build."""
    languages = [name for name in PARTS if name.count("-") == 2]
    assert len(languages) == 10
    for name in languages:
        response = client.get(f"/assets/{name.rpartition('-')[0]}-000000000000.js", headers=PLAIN)
        assert response.content == FILES[name].read_bytes()
        assert response.headers["cache-control"] == "no-store"
    assert client.get("/assets/app-xx-0.js", headers=PLAIN).content == client.get(APP, headers=PLAIN).content


def test_a_chunk_is_cached_for_ever_and_one_of_an_earlier_release_is_refused_uncached(client: TestClient) -> None:
    """An app passes objects to its chunks, so it understands only the ones of its own build."""
    assert len(CHUNKS) > 2
    for name in CHUNKS:
        assert client.get(f"/assets/{name}").headers["cache-control"] == "public, max-age=31536000, immutable"
        refused = client.get(f"/assets/{name.rpartition('-')[0]}-00000000.js")
        assert (refused.status_code, refused.headers["cache-control"]) == (404, "no-store")
        assert refused.headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("path", [LOADER, APP])
@pytest.mark.parametrize("encoding", ["identity", "gzip", "br"])
def test_an_etag_saves_the_body(client: TestClient, path: str, encoding: str) -> None:
    headers = {"Accept-Encoding": encoding}
    first = client.get(path, headers=headers)
    etag = first.headers["etag"]
    assert not etag.startswith("W/")
    again = client.get(path, headers={**headers, "If-None-Match": f'"other", {etag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", etag)
    assert again.headers["cache-control"] == first.headers["cache-control"]
    assert client.get(path, headers={**headers, "If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", [LOADER, APP, "/v/latest/widget.js"])
def test_each_encoding_has_its_own_etag_and_the_same_content(client: TestClient, path: str) -> None:
    asked = {"": "identity", "gzip": "gzip, br;q=0", "br": "gzip, deflate, br, zstd"}
    got = {}
    for encoding, header in asked.items():
        with client.stream("GET", path, headers={"Accept-Encoding": header}) as response:
            got[encoding] = b"".join(response.iter_raw()), response.headers
    assert [headers.get("content-encoding", "") for _, headers in got.values()] == list(asked)
    assert gzip.decompress(got["gzip"][0]) == got[""][0]
    assert len({headers["etag"] for _, headers in got.values()}) == 3
    assert len(got["br"][0]) < len(got["gzip"][0]) < len(got[""][0])
    assert all(int(headers["content-length"]) == len(body) for body, headers in got.values())


def test_without_brotli_files_gzip_is_served(tmp_path: Path) -> None:
    for name, file in FILES.items():
        (tmp_path / name).write_bytes(file.read_bytes())
    client = TestClient(Starlette(routes=list(routes(tmp_path))))
    assert client.get(LOADER, headers={"Accept-Encoding": "gzip, br"}).headers["content-encoding"] == "gzip"


def test_ranges_are_not_offered(client: TestClient) -> None:
    response = client.get(LOADER, headers={**PLAIN, "Range": "bytes=0-1,1-2,2-3"})
    assert response.status_code == 200
    assert "accept-ranges" not in response.headers


def test_other_files_and_methods_are_refused(client: TestClient) -> None:
    for path in ("/assets/page.html", "/assets/..%2Fapp.py", "/assets/app-/../../app.py", "/assets/", "/widget.js/"):
        assert client.get(path, follow_redirects=False).status_code in (307, 404)
    assert client.get("/assets/page.html").status_code == 404
    assert client.post(LOADER).status_code == 405
    assert client.head(LOADER).headers["etag"]


def test_the_sizes_are_what_we_promise() -> None:
    assert len(gzip.compress((ASSETS / "widget.js").read_bytes(), 9)) <= 2 * 1024
    assert len(gzip.compress((ASSETS / APP.removeprefix("/assets/")).read_bytes(), 9)) <= 15 * 1024


def test_a_missing_widget_says_how_to_build_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="npm run build"):
        routes(tmp_path)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("gzip", True),
        ("GZIP;q=0.5, br", True),
        ("*", True),
        ("", False),
        ("br", False),
        ("gzip;q=0", False),
        ("*;q=0", False),
        ("gzip; q=0.000, *", False),
        ("gzip;q=nonsense", False),
        ("gzipped", False),
    ],
)
def test_accept_encoding(header: str, expected: bool) -> None:
    assert accepts("gzip", header) is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [('"a"', True), ('W/"a"', True), ('"b", "a"', True), ("*", True), ('"b"', False), ("", False), ("a", False)],
)
def test_if_none_match(header: str, expected: bool) -> None:
    assert matches(header, '"a"') is expected


def test_the_single_file_has_the_published_digest(client: TestClient) -> None:
    published = client.get("/v/latest/sri.json").json()
    path = f"/{published['file']}"
    response = client.get(path, headers=PLAIN)
    digest = base64.b64encode(hashlib.sha384(response.content).digest()).decode()
    assert published["integrity"] == f"sha384-{digest}"
    assert response.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert client.get("/v/latest/sri.json").headers["content-type"] == "application/json"
    assert client.get("/v/0.0.1/widget.js").status_code == 404
    assert client.get(path.replace("widget.js", "page.css")).status_code == 404
