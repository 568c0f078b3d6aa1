"""The generated pages by their paths below docs/."""

from typing import get_args

from pruning.evaluation.tasks.task import Task
from pruning.recipe.recipe import Recipe
from server.config import Config
from server.knowledge.settings import Settings
from server.models.remote import RemoteModel
from server.skills.skill import Skill
from tests.conftest import ROOT
from tests.docs.reference import cli, errors, metrics, tree
from tests.docs.reference.structs import Root, sections

TASKS = get_args(Task)
ARCHITECTURE = "explain/architecture.md"
CONFIG = """
`secateur serve server.toml` reads one TOML file, and nothing else decides what a server does. A wrong type, an
unknown field or a value out of range is refused before the first listener answers, with its place in the file and
what is allowed there. Relative paths start at the working directory. [Settings](../operate/config.md) explains the
ones that matter first.
"""
SKILL = """
One TOML file for each skill; relative paths start at the skill's own folder. `secateur skills check` validates it.
[Skills](../guide/skills.md) explains the fields by example.
"""
KNOWLEDGE = """
One TOML file for `secateur knowledge build`; relative paths start at its own folder. A mistake is refused before any
work, with its place in the file and what is allowed there. [Knowledge](../guide/knowledge.md) begins with an example.
"""
RECIPE = """
One TOML file: a base, two texts and a list of stages, which run in their order. A mistake is refused before any work,
with its place in the file and what is allowed there. [Prune](../guide/prune.md) begins with an example.
"""
REMOTE = """
One TOML file for each model on other machines, which a skill or the server names as its `model`; relative paths start
at the working directory. [vLLM behind skills](../operate/remote.md) begins with an example.
"""
TASK = """
One TOML file; `kind` chooses one of the six below. Items are a list in the file itself or the name of a file of JSON
lines beside it. [Evaluate](../guide/evaluate.md) begins with an example.
"""
CLI = """
`secateur COMMAND --help` prints the same.

| exit code | meaning |
| --- | --- |
| 0 | done |
| 1 | something does not hold: a chain, a ledger's sums, an engine |
| 2 | a mistake that the user can correct; one sentence on stderr says which |
| 3 | a gate of a task failed |
| 130 | interrupted by Ctrl-C |
"""
METRICS = """
The admin listener answers `/metrics` in Prometheus's format. Counters of tokens and requests are read from the ledger
at scrape, so they survive restarts. Labels hold configured skills and loaded models, nothing that a request can
choose.
"""
ERRORS = """
A refused request is answered in OpenAI's shape, `{"error": {"message", "type", "param", "code"}}`; 429 and 503 carry
`Retry-After` in whole seconds. `code` is `null` where `param` says all. In the messages below `...` is a value that
is filled in.
"""


def pages() -> dict[str, str]:
    """Every generated page: its path below docs/ -> its whole text."""
    tasks = sections([Root(kind, "Task") for kind in TASKS])
    return {
        "reference/config.md": page("server.toml", "`server/config.py`", CONFIG, sections([Root(Config, "Settings")])),
        "reference/skill.md": page(
            "A skill's file", "`server/skills/skill.py`", SKILL, sections([Root(Skill, "A skill")])
        ),
        "reference/knowledge.md": page(
            "A knowledge's file", "`server/knowledge/settings.py`", KNOWLEDGE, sections([Root(Settings, "The file")])
        ),
        "reference/remote.md": page(
            "A remote model's file", "`server/models/remote.py`", REMOTE, sections([Root(RemoteModel, "The file")])
        ),
        "reference/recipe.md": page("A recipe", "`pruning/recipe/`", RECIPE, sections([Root(Recipe, "The recipe")])),
        "reference/task.md": page("A task", "`pruning/evaluation/tasks/task.py`", TASK, tasks),
        "reference/cli.md": page("The command line", "each command's parser", CLI, cli.sections()),
        "reference/metrics.md": page("Metrics", "what a server answers", METRICS, metrics.sections()),
        "reference/errors.md": page("Errors", "the error classes and codes of the sources", ERRORS, errors.sections()),
        ARCHITECTURE: tree.replaced((ROOT / "docs" / ARCHITECTURE).read_text(), ROOT),
    }


def page(title: str, source: str, introduction: str, body: str) -> str:
    """A page with its title, what it is generated from, and the generated body."""
    note = f"Generated from {source} by `make reference`; edit it there."
    return f"# {title}\n\n{note}\n\n{introduction.strip()}\n\n{body.strip()}\n"
