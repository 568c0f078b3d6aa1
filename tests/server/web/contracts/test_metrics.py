"""The usage sent to clients, the ledger's rows and the scraped metrics agree."""

import http.client
import random
import shutil
import sqlite3
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any
from urllib.parse import urlsplit

import pytest
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from server.metering.histograms import DURATION, FIRST_TOKEN, PER_TOKEN
from server.metering.ledger.records import OUTCOMES
from tests.support.harness import KEY, OTHER_KEY, Serve, Served, until


def scrape(served: Served, accept: str = "text/plain") -> str:
    with closing(http.client.HTTPConnection(urlsplit(served.admin).netloc, timeout=120)) as connection:
        connection.request("GET", "/metrics", headers={"Accept": accept})
        response = connection.getresponse()
        assert response.status == 200
        assert str(response.getheader("Content-Type")).startswith(accept.split(";")[0])
        return response.read().decode()


def samples(served: Served) -> dict[tuple[str, ...], float]:
    """(name, label value ...) -> value, the labels in alphabetical order of their names."""
    families = text_string_to_metric_families(scrape(served))
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in families
        for sample in family.samples
    }


def test_usage_is_ledger_is_metrics(serve: Serve) -> None:
    served = serve("0123456789" * 3)
    told = {(skill, kind): 0 for skill in ("help", "other") for kind in ("input", "cached", "output")}
    draw = random.Random(1)
    with (
        OpenAI(base_url=f"{served.url}/v1", api_key=KEY) as help_client,
        OpenAI(base_url=f"{served.url}/v1", api_key=OTHER_KEY) as other_client,
    ):
        clients = {"help": help_client, "other": other_client}
        for _ in range(40):
            skill = draw.choice(["help", "other"])
            options: dict[str, Any] = {
                "model": skill,
                "messages": [{"role": "user", "content": "x" * draw.randrange(50)}],
                "max_tokens": draw.randrange(1, 50),
                "stop": draw.choice([None, "7", "89"]),
            }
            usage = ask(clients[skill], options, stream=draw.random() < 0.5)
            told[skill, "input"] += usage.prompt_tokens
            told[skill, "cached"] += usage.prompt_tokens_details.cached_tokens
            told[skill, "output"] += usage.completion_tokens

    with closing(sqlite3.connect(served.parts.config.ledger)) as database:
        rows = database.execute(
            "SELECT skill, sum(prompt_tokens), sum(cached_tokens), sum(output_tokens) FROM requests GROUP BY skill"
        )
        recorded = {(row[0], kind): row[1 + index] for row in rows for index, kind in enumerate(TYPES)}
        outcomes = database.execute("SELECT skill, outcome, count(*) FROM requests GROUP BY skill, outcome").fetchall()
    scraped = samples(served)
    assert recorded == told
    assert {key: scraped["secateur_tokens_total", "tiny", key[0], key[1]] for key in told} == told
    assert told["help", "cached"] > 0
    for skill, outcome, count in outcomes:
        assert scraped["secateur_requests_total", "tiny", outcome, skill] == count
    for name in ("gen_ai_server_request_duration_seconds_count", "gen_ai_server_time_to_first_token_seconds_count"):
        assert sum(value for key, value in scraped.items() if key[0] == name) == 40
    for kind in ("input", "output"):
        for skill in ("help", "other"):
            counted = scraped["gen_ai_client_token_usage_sum", "chat", "secateur", skill, "tiny", kind]
            assert counted == told[skill, kind]


TYPES = ("input", "cached", "output")


def ask(client: OpenAI, options: dict[str, Any], *, stream: bool) -> Any:
    """The usage that the client received."""
    if not stream:
        return client.chat.completions.create(**options).usage
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    return chunks[-1].usage


def test_the_demo_page_shows_the_same_count(serve: Serve) -> None:
    served = serve("0123")
    with OpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client:
        usage = ask(client, {"model": "help", "messages": [{"role": "user", "content": "x"}]}, stream=False)
    with closing(http.client.HTTPConnection(urlsplit(served.page).netloc, timeout=120)) as connection:
        connection.request("GET", "/tokens")
        shown = connection.getresponse().read().decode()
    expected = f'{{"input":{usage.prompt_tokens},"cached":0,"output":{usage.completion_tokens},"requests":1}}'
    assert shown == expected


def test_counters_start_at_zero_and_info_metrics_describe_the_server(serve: Serve) -> None:
    served = serve()
    scraped = samples(served)
    for skill in ("help", "other"):
        for kind in TYPES:
            assert scraped["secateur_tokens_total", "tiny", skill, kind] == 0
        for outcome in OUTCOMES:  # or the first crash of all would be no increase
            assert scraped["secateur_requests_total", "tiny", outcome, skill] == 0
    for name in ("secateur_requests_running", "secateur_requests_waiting", "secateur_kv_cache_usage_ratio"):
        assert scraped[name, "tiny"] == 0
    assert scraped["secateur_model_info", "tiny", "1" * 64, "tiny", "wanda"] == 1
    assert scraped["secateur_runtime_info", "fake", "tiny", "no model is needed above it", "runner"] == 1


def test_buckets_follow_opentelemetrys_conventions(serve: Serve) -> None:
    """OpenTelemetry's advice for gen_ai.server.request.duration and gen_ai.server.time_to_first_token."""
    assert [round(bound, 2) for bound in DURATION] == [
        0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92,
    ]  # fmt: skip
    assert FIRST_TOKEN == (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10)
    assert PER_TOKEN == (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1, 2.5)


def test_unknown_skills_make_no_series(serve: Serve) -> None:
    served = serve()
    seen = []
    with OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0) as client:
        for index in range(5):
            with pytest.raises(Exception, match="no skill"):
                ask(client, {"model": f"x{index}", "messages": [{"role": "user", "content": "x"}]}, stream=False)
            seen.append(samples(served).keys())
    assert seen[1:] == seen[1:2] * 4  # the first has those of a 404, and the first scrape those of a scrape


def test_open_metrics_is_offered(serve: Serve) -> None:
    assert scrape(serve(), "application/openmetrics-text; version=1.0.0").endswith("# EOF\n")


def test_promtool_has_no_complaint(serve: Serve) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed (Debian: prometheus)")
    served = serve("0123")
    with OpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client:
        ask(client, {"model": "help", "messages": [{"role": "user", "content": "x"}]}, stream=True)
    checked = subprocess.run(
        [promtool, "check", "metrics"], input=scrape(served), capture_output=True, text=True, check=False
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")


# The histograms of the dashboards in vLLM's repository, under examples/online_serving, old and new.
STOCK = (
    "e2e_request_latency_seconds", "time_to_first_token_seconds", "time_per_output_token_seconds",
    "inter_token_latency_seconds", "request_time_per_output_token_seconds", "request_queue_time_seconds",
    "request_prefill_time_seconds", "request_decode_time_seconds", "request_inference_time_seconds",
    "request_prompt_tokens", "request_generation_tokens", "request_max_num_generation_tokens",
    "request_params_max_tokens",
)  # fmt: skip


def test_queueing_and_prefill_are_timed_apart(serve: Serve) -> None:
    served = serve("0123456789", metrics_compat="vllm", slots=1, delay=0.02, passes=1)
    with OpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client, ThreadPoolExecutor(2) as pool:
        question = {"model": "help", "messages": [{"role": "user", "content": "x"}]}
        both = [pool.submit(ask, client, question, stream=False) for _ in range(2)]
        until(lambda: served.engine.running == served.engine.waiting == 1)
        served.runner.release()
        assert [one.result() for one in both]
    scraped = samples(served)
    queued, decoded = (scraped[f"vllm:request_{part}_time_seconds_sum", "tiny"] for part in ("queue", "decode"))
    assert queued > decoded / 4  # one of the two waited for the whole of the other
    assert scraped["vllm:request_queue_time_seconds_bucket", "0.08", "tiny"] <= 1


def test_an_unreadable_ledger_hides_only_its_own_counters(serve: Serve) -> None:
    """The alert for it, and the engine's gauges, must stay."""
    served = serve("0123", metrics_compat="vllm", webhook="http://127.0.0.1:9/")
    served.parts.ledger.where += ".gone"
    scraped = samples(served)
    assert scraped["secateur_ledger_writable",] == 0
    for name in ("secateur_requests_running", "secateur_requests_waiting", "vllm:num_requests_running"):
        assert scraped[name, "tiny"] == 0
    gone = (
        "secateur_tokens",
        "secateur_requests_total",
        "secateur_budget",
        "vllm:prompt_tokens_total",
        "secateur_webhook",
    )
    assert not [key for key in scraped if key[0].startswith(gone)]
    served.parts.ledger.where = served.parts.ledger.where.removesuffix(".gone")
    scraped = samples(served)
    assert scraped["secateur_ledger_writable",] == 1
    assert scraped["secateur_tokens_total", "tiny", "help", "input"] == 0


def test_vllm_names_have_the_same_values_if_configured(serve: Serve) -> None:
    served = serve("0123456789", metrics_compat="vllm")
    with OpenAI(base_url=f"{served.url}/v1", api_key=KEY) as client:
        usage = ask(client, {"model": "help", "messages": [{"role": "user", "content": "x"}]}, stream=True)
    scraped = samples(served)
    assert scraped["vllm:prompt_tokens_total", "tiny"] == usage.prompt_tokens
    assert scraped["vllm:generation_tokens_total", "tiny"] == usage.completion_tokens
    assert scraped["vllm:request_success_total", "stop", "tiny"] == 1
    assert scraped["vllm:request_success_total", "abort", "tiny"] == 0
    assert scraped["vllm:prefix_cache_queries_total", "tiny"] == usage.prompt_tokens
    assert scraped["vllm:prefix_cache_hits_total", "tiny"] == 0
    for name in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc", "gpu_cache_usage_perc"):
        assert scraped[f"vllm:{name}", "tiny"] == 0
    [blocks] = [key for key in scraped if key[0] == "vllm:cache_config_info"]
    assert set(blocks[1:]) == {"tiny", "32", str(served.engine.cache_blocks)}, "what an endpoint picker reads"
    for name in STOCK:
        assert scraped[f"vllm:{name}_count", "tiny"] == 1
    assert scraped["vllm:request_params_max_tokens_sum", "tiny"] == 64
    parts = sum(scraped[f"vllm:request_{part}_time_seconds_sum", "tiny"] for part in ("queue", "prefill", "decode"))
    assert parts == pytest.approx(scraped["vllm:e2e_request_latency_seconds_sum", "tiny"])
    assert not [key for key in samples(serve("0123", ledger="other.sqlite3")) if key[0].startswith("vllm:")]
