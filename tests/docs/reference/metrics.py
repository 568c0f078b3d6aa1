"""Every metric that `/metrics` of a server shows, read from one that has answered a request."""

import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

from msgspec.structs import replace
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from server.errors import REASONS
from server.metering.ledger.records import KINDS, OUTCOMES
from server.skills import api_keys
from server.skills.key_limits import KeyLimits
from tests.docs.reference.markdown import prose, table
from tests.server.web.test_budgets import ASK, ask
from tests.support.harness import HELP, parts, says, served

GROUPS = (
    ("Secateur's own", "secateur_"),
    ("OpenTelemetry's conventions for generative AI", "gen_ai_"),
    ("The process", "process_"),
    ("Garbage collection", "python_gc_"),
    ('With `metrics_compat = "vllm"`', "vllm:"),
)
VALUES = (("`type` of tokens", KINDS), ("`outcome` of a reply", OUTCOMES), ("`reason` of a refusal", REASONS))


def sections() -> str:
    """A table for each family of names, and the values that labels have."""
    families = scraped()
    shown = []
    for title, prefix in GROUPS:
        rows = [row(family) for family in families if family.name.startswith(prefix)]
        shown += [f"## {title}", table(("metric", "kind", "labels", "meaning"), rows)]
    values = [(name, ", ".join(f"`{value}`" for value in known)) for name, known in VALUES]
    return "\n\n".join([*shown, "## Values of labels", table(("label", "values"), values)])


def scraped() -> list[Metric]:
    """The families of a server with every kind of metric on, after one reply."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        runner = says(folder, "Good day.")
        skill = replace(HELP, tokens_per_day=1000)
        keys = folder / "keys.json"
        api_keys.create(keys, ["help"], "", limits=KeyLimits(tokens_per_day=1000))
        made = parts(folder, runner, (skill,), metrics_compat="vllm", webhook="http://127.0.0.1:9/", keys=str(keys))
        with served(made, runner) as server:
            assert ask(server, ASK).status == 200
            with urllib.request.urlopen(f"{server.admin}/metrics") as answer:
                text = answer.read().decode()
    families = sorted(text_string_to_metric_families(text), key=lambda family: family.name)
    known = tuple(prefix for _, prefix in GROUPS)
    return [family for family in families if family.name.startswith(known) and not family.name.endswith("_created")]


def row(family: Metric) -> tuple[str, str, str, str]:
    """Its name as a query has it, its kind, its labels but for a histogram's bound, and its help text."""
    name = f"{family.name}_total" if family.type == "counter" else family.name
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    return f"`{name}`", family.type, ", ".join(f"`{label}`" for label in labels), prose(family.documentation)
