"""Every block of shell, TOML and Python in the documentation is carried out on a tiny model, or says why it is not."""

import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from server.artifact.checkpoint import chain
from server.artifact.checkpoint import lineage as record
from server.artifact.registry.store import Registry
from tests.conftest import ROOT
from tests.docs.blocks import PAGES, blocks, name, runs
from tests.docs.conftest import Run

pytestmark = pytest.mark.slow

PROVING = ROOT / "docs" / "guide" / "proving.md"
NOT_RUN = {
    "README.md": 1,
    "docs/CONTRIBUTING.md": 2,
    "docs/guide/evaluate.md": 2,
    "docs/guide/knowledge.md": 2,
    "docs/guide/prune.md": 5,
    "docs/guide/registry.md": 2,
    "docs/explain/recipes.md": 1,
    "docs/guide/skills.md": 1,
    "docs/guide/tutorial.md": 3,
    "docs/operate/conversations.md": 3,
    "docs/operate/installed.md": 1,
    "docs/operate/ledger.md": 3,
    "docs/operate/metrics.md": 1,
    "docs/operate/remote.md": 3,
    "docs/operate/replicas.md": 2,
    "docs/results/speed.md": 3,
    "docs/start.md": 2,
}
"""Page -> blocks that no test can carry out."""


@pytest.mark.parametrize("page", [page for page in PAGES if runs(page) and page != PROVING], ids=name)
def test_the_commands_of_a_page_work_in_their_order(page: Path, run: Run) -> None:
    run(page)


def test_the_way_from_a_base_to_production_and_back(run: Run) -> None:
    folder, said = run(PROVING)
    assert said.count("Passed: every gate holds") == 3
    assert '"completion_tokens":' in said
    assert "mine@1 is in production again" in said
    with Registry.open(str(folder / "build" / "registry.sqlite3")) as registry:
        assert [move.kind for move in registry.moves("mine")] == ["promote", "promote", "rollback"]
    packed = record.read(folder / "export" / "second-gguf")
    assert [link.technique for link in chain.links(packed)] == ["sparsegpt", "gptq", "export"]


def test_that_way_uses_every_command() -> None:
    script = "\n".join(block.body for block in blocks(PROVING) if block.kind == "sh")
    used = set(re.findall(r"secateur (\w+)", script))
    assert used >= {"prune", "evaluate", "keys", "sign", "verify", "lineage", "registry", "serve", "export"}
    assert set(re.findall(r"--to ([\w-]+)", script)) == {"hf", "compressed-tensors", "gguf"}


def test_a_block_that_is_not_run_gives_a_reason_and_is_counted_here() -> None:
    skipped = [(page, block) for page in PAGES for block in blocks(page) if block.reason is not None]
    assert all(block.reason for _, block in skipped)
    assert Counter(name(page) for page, _ in skipped) == NOT_RUN
    for _, block in skipped:
        if block.kind == "toml":
            tomllib.loads(block.body)
