"""Requests are counted and timed by route, and every 5xx is logged with its cause and without a client's text."""

import logging

import pytest
from prometheus_client.parser import text_string_to_metric_families

from server.errors import ArtifactError
from server.text.tokenizer import Tokenizer
from tests.server.web.test_listeners import ASK, call, complete
from tests.support.harness import Serve, Served, until

SECRET = "Zwiebelkuchen"


def samples(served: Served, name: str) -> dict[tuple[str, ...], float]:
    """The samples called `name`, by the values of their labels in alphabetical order of the labels' names."""
    text = call(served.admin, "/metrics").content.decode()
    every = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {tuple(v for _, v in sorted(one.labels.items())): one.value for one in every if one.name == name}


def test_requests_are_counted_by_route_method_and_status(serve: Serve) -> None:
    served = serve("ok")
    assert complete(served, ASK).status == 200
    assert complete(served, {**ASK, "model": "nobody"}).status == 404
    for path in (f"/{SECRET}", f"/v1/skills/{SECRET}"):
        call(served.url, path, method=SECRET.upper())
    call(served.admin, "/healthz")
    call(served.admin, f"/{SECRET}")
    counted = samples(served, "secateur_http_requests_total")
    assert counted["POST", "/v1/chat/completions", "200"] == 1
    assert counted["POST", "/v1/chat/completions", "404"] == 1
    assert counted["_OTHER", "unmatched", "404"] == 1
    assert counted["_OTHER", "/v1/skills/{name}", "405"] == 1
    assert counted["GET", "/healthz", "200"] == 1
    assert counted["GET", "unmatched", "404"] == 1
    assert samples(served, "secateur_http_requests_total")["GET", "/metrics", "200"] >= 1
    assert samples(served, "secateur_http_request_duration_seconds_count")["/v1/chat/completions",] == 2


def test_a_500_is_logged_with_its_cause_and_without_text(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object, **__: object) -> list[int]:
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise ArtifactError(f"The chat template failed: {SECRET}") from error

    served = serve("ok")
    monkeypatch.setattr(Tokenizer, "chat", failing)
    answer = complete(served, ASK)
    assert answer.status == 500
    assert samples(served, "secateur_http_requests_total")["POST", "/v1/chat/completions", "500"] == 1
    [record] = [one for one in caplog.records if one.name == "server.web.http.problems"]
    facts = vars(record)["facts"]
    assert (record.levelno, facts["request_id"]) == (logging.ERROR, answer.headers["X-Request-Id"])
    assert "ArtifactError <- ValueError" in record.getMessage()
    assert "in failing" in record.getMessage()
    assert SECRET not in record.getMessage() + str(facts)


def test_a_503_is_logged_with_its_reason(serve: Serve, caplog: pytest.LogCaptureFixture) -> None:
    served = serve("ok")
    served.apps.replies.drain()
    assert complete(served, ASK).status == 503
    [record] = [one for one in caplog.records if one.name == "server.web.http.problems"]
    assert record.getMessage() == "A request was answered 503: Overloaded, draining"


def test_the_process_its_build_and_its_event_loop_are_described(serve: Serve) -> None:
    served = serve("ok")
    assert samples(served, "process_resident_memory_bytes")[()] > 1e6
    assert samples(served, "process_cpu_seconds_total")[()] > 0
    assert list(samples(served, "secateur_build_info").values()) == [1]
    until(lambda: samples(served, "secateur_event_loop_lag_seconds_count")[()] >= 1)


def test_the_queue_and_the_time_between_tokens_are_observed(serve: Serve) -> None:
    served = serve("0123456789", delay=0.01)
    assert complete(served, ASK).status == 200
    [(labels, queued)] = samples(served, "secateur_request_queue_seconds_count").items()
    assert (labels, queued) == (("chat", "secateur", "help", "tiny"), 1)
    assert samples(served, "secateur_inter_token_latency_seconds_count")[labels] == 10
    assert samples(served, "secateur_inter_token_latency_seconds_sum")[labels] >= 0.09
