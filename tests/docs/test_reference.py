"""The reference says what the code does: its generated pages are today's, and nothing in them is left undocumented."""

import ast
import re
from collections.abc import Iterator

import pytest

from pruning.recipe.recipe import Recipe
from server.config import Config
from server.knowledge.settings import Settings
from server.skills.skill import Skill
from tests.conftest import ROOT
from tests.docs.reference.errors import codes
from tests.docs.reference.pages import TASKS, pages
from tests.docs.reference.structs import documented, every, fields

NAMES = ("config", "skill", "remote", "knowledge", "recipe", "task", "cli", "metrics", "errors")
METRIC = re.compile(r"(?:secateur_|gen_ai_(?:server|client)_|vllm:)[a-z_]+")


@pytest.fixture(scope="module")
def generated() -> dict[str, str]:
    return pages()


@pytest.mark.parametrize("name", [*(f"reference/{name}.md" for name in NAMES), "explain/architecture.md"])
def test_a_page_is_what_the_code_says(generated: dict[str, str], name: str) -> None:
    assert (ROOT / "docs" / name).read_text() == generated[name], "run `make reference`"


def test_every_generated_page_is_compared(generated: dict[str, str]) -> None:
    assert set(generated) == {*(f"reference/{name}.md" for name in NAMES), "explain/architecture.md"}


def test_every_field_has_a_docstring() -> None:
    structs = [kind for root in (Config, Skill, Settings, Recipe, *TASKS) for kind in every(root)]
    missing = {
        f"{kind.__name__}.{item.name}" for kind in structs for item in fields(kind) if not meaning(kind, item.name)
    }
    assert not missing


def meaning(kind: type, field: str) -> str:
    return documented(kind).get(field, "")


def test_no_argument_and_no_metric_is_left_unexplained(generated: dict[str, str]) -> None:
    for name in ("cli", "metrics", "errors"):
        rows = re.findall(r"^\|.*\|$", generated[f"reference/{name}.md"], re.MULTILINE)
        assert rows
        assert not [row for row in rows if row.endswith("|  |")]


def test_the_page_of_metrics_has_every_name_in_the_sources(generated: dict[str, str]) -> None:
    names = {name for text in strings() for name in METRIC.findall(text) if METRIC.fullmatch(text)}
    assert len(names) > 15
    assert not {name for name in names if name not in generated["reference/metrics.md"]}


def strings() -> Iterator[str]:
    for path in (ROOT / "server" / "metering").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value


def test_the_page_of_errors_has_every_code_that_the_widget_and_the_clients_meet(generated: dict[str, str]) -> None:
    assert len({code.code for code in codes()}) > 20
    protocol = (ROOT / "docs/reference/widget-protocol.md").read_text()
    named = set(re.findall(r"^\| \d{3} \| (.*?) \|", protocol, re.MULTILINE))
    told = {code for cell in named for code in re.findall(r"`(\w+)`", cell)} - {"null"}
    assert told
    assert not {code for code in told if f"| `{code}` |" not in generated["reference/errors.md"]}
