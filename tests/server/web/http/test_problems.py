"""Wrong paths, wrong methods, encoded bodies and preflights, over HTTP."""

import gzip
import json
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.harness import KEY, ORIGIN, Serve

BODY = json.dumps({"model": "help", "messages": [{"role": "user", "content": "hi"}]}).encode()
AUTHORISED = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
# What openai-node 6 and @anthropic-ai/sdk send from a browser, beside the content type.
STAINLESS = "x-stainless-arch,x-stainless-lang,x-stainless-os,x-stainless-package-version,x-stainless-retry-count"
OPENAI = (
    f"authorization,content-type,openai-organization,openai-project,{STAINLESS},x-stainless-runtime,idempotency-key"
)
ANTHROPIC = f"anthropic-dangerous-direct-browser-access,anthropic-version,content-type,x-api-key,{STAINLESS}"


def error(response: httpx.Response) -> dict[str, Any]:
    assert set(response.json()) == {"error"}
    found: dict[str, Any] = response.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return found


@pytest.mark.parametrize(
    "path", ["/chat/completions", "/v1/chat/completion", "/v1", "/v1/audio/speech", "/%3Cscript%3E"]
)
def test_an_unknown_path_is_named_with_what_exists(serve: Serve, path: str) -> None:
    refused = httpx.post(serve().url + path, content=BODY, headers=AUTHORISED)
    assert (refused.status_code, error(refused)["code"]) == (404, "not_found")
    assert f"nothing at {httpx.URL('http://x' + path).path}" in error(refused)["message"]
    assert "POST /v1/chat/completions" in error(refused)["message"]
    assert "GET /v1/models/{name}," in error(refused)["message"]
    assert "widget" not in error(refused)["message"]


def test_a_wrong_method_is_told_the_right_one(serve: Serve) -> None:
    refused = httpx.get(serve().url + "/v1/chat/completions", headers=AUTHORISED)
    assert (refused.status_code, refused.headers["allow"]) == (405, "POST")
    assert error(refused)["message"] == "Method Not Allowed at /v1/chat/completions; allowed: POST."


def test_gzip_bodies_are_read_and_others_are_refused_by_name(serve: Serve) -> None:
    url = serve("Hello!").url + "/v1/chat/completions"
    packed = httpx.post(url, content=gzip.compress(BODY), headers={**AUTHORISED, "Content-Encoding": "gzip"})
    assert packed.json()["choices"][0]["message"]["content"] == "Hello!"
    refused = httpx.post(url, content=b"x", headers={**AUTHORISED, "Content-Encoding": "br"})
    assert (refused.status_code, error(refused)["code"]) == (415, "unsupported_encoding")
    assert refused.headers["accept-encoding"] == "gzip"


@pytest.mark.parametrize("headers", [OPENAI, ANTHROPIC])
def test_a_preflight_allows_what_official_clients_send(serve: Serve, headers: str) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": headers,
    }
    answer = httpx.options(serve().url + "/v1/chat/completions", headers=asked)
    allowed = answer.headers["access-control-allow-headers"].lower().split(", ")
    assert answer.status_code == 204
    assert set(headers.split(",")) <= set(allowed)
