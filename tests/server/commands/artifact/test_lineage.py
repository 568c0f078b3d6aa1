"""`secateur lineage`: the whole chain in the terminal, and whether it verifies."""

from pathlib import Path

import msgspec
import pytest

from server.artifact.checkpoint import lineage as record
from server.commands.__main__ import main
from server.commands.artifact.lineage import draw
from tests.server.artifact.signing.artifacts import make


def test_the_chain_is_drawn_from_base_to_artifact_with_its_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gate = record.GateResult("faq", True, {"nll_ratio": 1.02})
    made = make(tmp_path / "model", gates=(gate,))
    assert main(["lineage", str(tmp_path / "model")]) == 0
    printed = capsys.readouterr().out
    for part in ("tiny", "wanda (sparsity = 2:4)", made.steps[0].digest[:16], record.address(made)[:16], "17.00"):
        assert part in printed
    assert "gate faq: passed" in printed
    assert "4 files have their digests, the chain is whole" in printed
    (tmp_path / "model" / "config.json").write_text("{}")
    assert main(["lineage", str(tmp_path / "model")]) == 1
    assert "NOT VERIFIED" in capsys.readouterr().out


def test_a_parent_comes_before_its_child_and_no_name_moves_the_cursor(tmp_path: Path) -> None:
    parent = make(tmp_path / "parent")
    base = record.Base("child\x1b[2J", "1" * 64)
    step = msgspec.structs.replace(parent.steps[0], technique="gptq", parent_digest=parent.steps[0].digest)
    child = msgspec.structs.replace(
        parent, base=base, steps=(step,), parent=parent, parent_digest=record.address(parent)
    )
    lines = list(draw(child, "final"))
    text = "\n".join(lines)
    assert text.index("wanda") < text.index("gptq") < text.index("final")
    assert record.address(parent)[:16] in text
    assert "\x1b" not in text
