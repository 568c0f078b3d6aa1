"""The scrape config, the alerts and the dashboard, against a real Prometheus that scrapes the real server."""

import json
import math
import re
import shutil
import socket
import sqlite3
import subprocess
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace

from server.commands.__main__ import main
from server.metering.ledger.ledger import Ledger
from server.skills import api_keys
from server.skills.key_limits import KeyLimits
from server.skills.skill import Skill
from tests.conftest import ROOT
from tests.exams.client import Server, ask, serving
from tests.support.harness import HELP, KEY, OTHER, OTHER_KEY, Served, parts, says, served, until
from tests.support.library import library

DEPLOY = ROOT / "deploy"
CONFIG = DEPLOY / "prometheus" / "prometheus.yml"
DASHBOARD = DEPLOY / "grafana" / "tokens-per-skill.json"
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
METRIC = re.compile(r"\b(?:secateur|gen_ai|process)_\w+")
NOT_SHOWN = {
    "gen_ai_client_token_usage",
    "process_start_time_seconds",
    "process_virtual_memory_bytes",
    "secateur_build_info",
    "secateur_feedback",
    "secateur_forced_tokens",
    "secateur_grammar_compile_seconds",
    "secateur_ledger_info",
    "secateur_runtime_info",
}
"""Metrics in neither the dashboard nor an alert; a new one is added to either, or here."""
VARIABLES = {"$__rate_interval": "10s", "$__range": "1m", "$skill": ".*"}

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="Debian's package prometheus is not installed",
)


@needs_prometheus
def test_promtool_accepts_the_scrape_config() -> None:
    subprocess.run(["promtool", "check", "config", "--lint-fatal", str(CONFIG)], check=True, capture_output=True)


@needs_prometheus
def test_promtool_accepts_the_alerts_and_their_tests_hold() -> None:
    lint = ["promtool", "check", "rules", "--lint=all", "--lint-fatal", str(ALERTS)]
    subprocess.run(lint, check=True, capture_output=True)
    tests = ["promtool", "test", "rules", "alerts.test.yml"]
    subprocess.run(tests, check=True, capture_output=True, cwd=ALERTS.parent)


def test_every_alert_fires_in_a_test_and_names_only_existing_metrics(tmp_path: Path) -> None:
    alerts = re.findall(r"- alert: (\w+)", ALERTS.read_text())
    fires = re.findall(r"alertname: (\w+)\n +exp_alerts:", ALERTS.with_name("alerts.test.yml").read_text())
    assert sorted(alerts) == sorted(fires)
    runner = says(tmp_path, "Good day.")
    skills = (replace(HELP, tokens_per_day=10**6), OTHER)
    made = parts(tmp_path, runner, skills, webhook="http://127.0.0.1:9/", keys=limited_key(tmp_path))
    with served(made, runner) as server:
        chat(server.url, "help", KEY)
        exposed = urllib.request.urlopen(f"{server.admin}/metrics", timeout=120).read().decode()
    known = set(re.findall(r"^(\w+)(?:\{| )", exposed, re.MULTILINE))
    assert not set(METRIC.findall(ALERTS.read_text())) - known - {"gen_ai_request_model"}


def limited_key(folder: Path) -> str:
    """A file of keys with one that has a budget."""
    file = folder / "keys.json"
    api_keys.create(file, ["help"], "", limits=KeyLimits(tokens_per_month=10**6))
    return str(file)


class Scraped(Struct):
    """Prometheus's totals and the ledger's, after servers were killed."""

    ledger: dict[str, float]
    prometheus: dict[str, float]
    open_rows: int
    recovered: int
    alerted: bool
    """Whether the alert SecateurCrashed fires."""

    @property
    def good(self) -> bool:
        """Whether the totals are equal, some replies were cut, and the alert fires."""
        return self.ledger == self.prometheus and not self.open_rows and self.recovered > 0 and self.alerted


def through_kills(folder: Path, kills: int = 2) -> Scraped | None:
    """Kill and restart a server on the same port; None if Prometheus is not installed."""
    if shutil.which("prometheus") is None:
        return None
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    admin = f"http://127.0.0.1:{number}"
    with prometheus(admin, folder) as port:
        for _ in range(kills):
            with serving(folder, admin_port=number, slots=8) as server:
                server.ready()
                clients = [threading.Thread(target=load, args=(server,)) for _ in range(8)]
                for client in clients:
                    client.start()
                until(lambda: sum_of(port, "secateur_tokens_total") > 500)
                server.kill()  # while they stream
                for client in clients:
                    client.join()
        with serving(folder, admin_port=number) as server:
            server.ready()
            with closing(sqlite3.connect(folder / "usage.sqlite3")) as database:
                columns = "sum(prompt_tokens), sum(cached_tokens), sum(output_tokens)"
                [sums] = database.execute(f"SELECT {columns} FROM requests WHERE state <> 'open'")
                [(open_rows,)] = database.execute("SELECT count(*) FROM requests WHERE state = 'open'")
                [(recovered,)] = database.execute("SELECT count(*) FROM requests WHERE state = 'recovered'")
            expected = dict(zip(("input", "cached", "output"), map(float, sums), strict=True))
            with suppress(AssertionError):  # differences are reported
                until(lambda: by_type(port) == expected)
            return Scraped(expected, by_type(port), open_rows, recovered, bool(query(port, rule("SecateurCrashed"))))


def rule(alert: str) -> str:
    """The expression of an alert."""
    found = re.search(rf"- alert: {alert}\n +expr: (.+)\n", ALERTS.read_text())
    assert found
    return found[1]


@needs_prometheus
@pytest.mark.parametrize("kills", [1, 2])
def test_prometheus_equals_the_ledger_after_load_and_kill_9(tmp_path: Path, kills: int) -> None:
    found = through_kills(tmp_path, kills)
    assert found
    assert found.good, found


@needs_prometheus
def test_reconcile_finds_what_only_prometheus_remembers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A ledger restored from an old backup is consistent, and bills less than was delivered."""
    ledger, backup = tmp_path / "usage.sqlite3", tmp_path / "backup.sqlite3"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number = probe.getsockname()[1]
    with prometheus(f"http://127.0.0.1:{number}", tmp_path) as port:
        url = f"http://127.0.0.1:{port}"
        with serving(tmp_path, admin_port=number) as server:
            ask(server.url)
            with closing(sqlite3.connect(ledger)) as source, closing(sqlite3.connect(backup)) as target:
                source.backup(target)
            clients = [threading.Thread(target=ask, args=(server.url,)) for _ in range(8)]
            for client in clients:
                client.start()
            until(lambda: sum_of(port, "secateur_tokens_total") > 0)
            assert main(["reconcile", str(ledger), "--prometheus", url]) == 0  # while replies end
            for client in clients:
                client.join()
            with closing(sqlite3.connect(ledger)) as database:
                [(tokens,)] = database.execute("SELECT sum(prompt_tokens + output_tokens) FROM requests")
            counted = 'secateur_tokens_total{type=~"input|output"}'
            until(lambda: sum_of(port, counted) == tokens)
        assert main(["reconcile", str(ledger), "--prometheus", url]) == 0
        for name in ("usage.sqlite3-wal", "usage.sqlite3-shm"):
            (tmp_path / name).unlink(missing_ok=True)
        backup.replace(ledger)
        assert main(["reconcile", str(ledger)]) == 0
        capsys.readouterr()
        assert main(["reconcile", str(ledger), "--prometheus", url]) == 1
        printed = capsys.readouterr().out
    assert f"secateur_tokens_total help/tiny/output: {url} says " in printed
    assert "secateur_requests_total help/tiny/length: " in printed
    assert printed.endswith("1 rows, 4 differences\n"), printed


def test_reconcile_names_the_address_without_a_prometheus(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Ledger(tmp_path / "usage.sqlite3").close()
    with serving(tmp_path / "server") as server:
        for url in ("http://127.0.0.1:9", server.admin, "nonsense"):
            assert main(["reconcile", str(tmp_path / "usage.sqlite3"), "--prometheus", url]) == 2
            assert f"{url} cannot be queried as a Prometheus: " in capsys.readouterr().err


def load(server: Server) -> None:
    """Stream one reply after another until the server is gone."""
    while server.alive():
        ask(server.url)


def sum_of(port: int, name: str) -> float:
    """Sum of a metric over all series."""
    return sum(float(series["value"][1]) for series in query(port, f"sum({name})"))


def by_type(port: int) -> dict[str, float]:
    """Tokens by type, over all skills and models."""
    found = query(port, "sum by (type) (secateur_tokens_total)")
    return {series["metric"]["type"]: float(series["value"][1]) for series in found}


@needs_prometheus
def test_every_expression_of_the_dashboard_returns_data(tmp_path: Path) -> None:
    runner = says(tmp_path, "Good day.", delay=0.001)
    skills = (replace(HELP, tokens_per_day=10**6, tokens_per_month=10**7), OTHER, desk(tmp_path))
    made = parts(tmp_path, runner, skills, keys=limited_key(tmp_path))
    with served(made, runner) as server, prometheus(server.admin, tmp_path) as port:
        missing = set(expressions())

        def complete() -> bool:
            chat(server.url, "help", KEY)
            chat(server.url, "other", OTHER_KEY)
            chat(server.url, "desk", KEY)
            with suppress(urllib.error.HTTPError):  # an error by route
                urllib.request.urlopen(f"{server.url}/v1/none", timeout=120)
            missing.difference_update([expression for expression in missing if has_data(port, expression)])
            return not missing

        until(complete)
        assert_counters_equal_the_ledger(server, port)


def assert_counters_equal_the_ledger(server: Served, port: int) -> None:
    """Wait until a scrape shows the ledger's totals in Prometheus."""
    tokens = server.parts.ledger.totals().tokens
    expected = {(skill, kind): float(count) for (skill, _, kind), count in tokens.items()}

    def scraped() -> dict[tuple[str, str], float]:
        series = query(port, "secateur_tokens_total")
        return {(s["metric"]["skill"], s["metric"]["type"]): float(s["value"][1]) for s in series}

    until(lambda: scraped() == expected)
    assert min(expected[skill, kind] for skill in ("help", "other") for kind in ("input", "output")) > 0


def desk(folder: Path) -> Skill:
    """A skill that answers from knowledge."""
    return replace(HELP, name="desk", knowledge=str(library(folder)))


def expressions() -> Iterator[str]:
    """Every PromQL expression of the dashboard, with its variables substituted as in Grafana."""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        for target in panel.get("targets", []):
            expression = target["expr"]
            for variable, value in VARIABLES.items():
                expression = expression.replace(variable, value)
            assert "$" not in expression
            yield expression


def test_the_dashboard_names_only_existing_metrics(tmp_path: Path) -> None:
    runner = says(tmp_path, "Good day.")
    skills = (replace(HELP, tokens_per_day=10**6), OTHER, desk(tmp_path))
    made = parts(tmp_path, runner, skills, keys=limited_key(tmp_path))
    with served(made, runner) as server:
        chat(server.url, "help", KEY)
        chat(server.url, "desk", KEY)
        exposed = urllib.request.urlopen(f"{server.admin}/metrics", timeout=120).read().decode()
    known = set(re.findall(r"^(\w+)(?:\{| )", exposed, re.MULTILINE))
    named = {name for e in expressions() for name in METRIC.findall(e)}
    assert named
    assert not named - known - {"gen_ai_request_model"}
    families = {name.removesuffix("_total") for name in re.findall(r"^# TYPE (\w+)", exposed, re.MULTILINE)}
    used = named | set(METRIC.findall(ALERTS.read_text()))
    shown = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in used}
    others = {name for name in families - shown if not name.startswith("python_") and not name.endswith("_created")}
    assert sorted(others) == sorted(NOT_SHOWN)


@contextmanager
def prometheus(admin: str, folder: Path, text: str = "") -> Iterator[int]:
    """Run a Prometheus with our scrape config and alerts against a server's admin listener; yields its port."""
    config = (text or CONFIG.read_text()).replace("127.0.0.1:9464", admin.removeprefix("http://"))
    assert admin.removeprefix("http://") in config
    shutil.copy(ALERTS, folder)
    (folder / "prometheus.yml").write_text(config.replace("scrape_interval: 15s", "scrape_interval: 1s"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    process = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stderr=subprocess.DEVNULL,
    )
    try:
        yield port
    finally:
        process.terminate()
        process.wait(120)


def query(port: int, expression: str) -> list[dict[str, Any]]:
    """The result of an instant query; empty while Prometheus starts."""
    url = f"http://127.0.0.1:{port}/api/v1/query?{urllib.parse.urlencode({'query': expression})}"
    try:
        with urllib.request.urlopen(url, timeout=120) as answer:
            result: list[dict[str, Any]] = json.load(answer)["data"]["result"]
            return result
    except urllib.error.HTTPError as error:
        with error:  # it holds the connection
            if error.code != 503:
                raise
        return []
    except (ConnectionError, urllib.error.URLError):
        return []


def has_data(port: int, expression: str) -> bool:
    """Whether a query returns a number."""
    return any(not math.isnan(float(series["value"][1])) for series in query(port, expression))


def chat(url: str, skill: str, key: str) -> None:
    """Request one complete reply."""
    body = json.dumps({"model": skill, "messages": [{"role": "user", "content": "Hello"}]}).encode()
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    urllib.request.urlopen(urllib.request.Request(f"{url}/v1/chat/completions", body, headers), timeout=120).read()
