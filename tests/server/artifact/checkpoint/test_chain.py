"""The record: its schema in the repository, its address, and the chain that no link may be exchanged in."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest

from server.artifact.checkpoint import chain
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.lineage import Base, Lineage, Step
from server.errors import ArtifactError

SCHEMA = Path(record.__file__).with_name("lineage.schema.json")


def step(parent: str, made: str, technique: str = "wanda") -> Step:
    return Step(technique, {"sparsity": "2:4"}, {}, 1.0, 10, parent_digest=parent, digest=made)


def lineage(*steps: Step, parent: Lineage | None = None) -> Lineage:
    digest = record.address(parent) if parent else ""
    base = Base(name="tiny", digest="0" * 64)
    return Lineage("2026-11-25T00:00:00Z", base, {}, steps, {}, parent=parent, parent_digest=digest)


PARENT = lineage(step("a", "b"), step("b", "c", "distill"))
CHILD = lineage(step("c", "d", "gptq"), parent=PARENT)


def test_the_schema_in_the_repository_is_that_of_the_code() -> None:
    again = "from server.artifact.checkpoint import lineage; open(..., 'wb').write(lineage.schema())"
    assert SCHEMA.read_bytes() == record.schema(), f"write it anew: {again}"


def test_the_schema_takes_a_record_and_refuses_what_the_reader_refuses() -> None:
    schema = json.loads(SCHEMA.read_bytes())
    values: dict[str, Any] = json.loads(record.encoded(CHILD))
    jsonschema.validate(values, schema)
    values["parent"]["steps"][0]["sparsty"] = {}
    with pytest.raises(jsonschema.ValidationError, match="sparsty"):
        jsonschema.validate(values, schema)


def test_the_address_depends_on_the_content_and_not_on_the_formatting(tmp_path: Path) -> None:
    values: dict[str, Any] = json.loads(record.encoded(CHILD))
    (tmp_path / record.FILE).write_text(json.dumps(dict(reversed(values.items())) | {"version": 1, "inputs": {}}))
    assert record.address(record.read(tmp_path)) == record.address(CHILD)
    assert record.address(msgspec.structs.replace(CHILD, created="2026-11-26T00:00:00Z")) != record.address(CHILD)


def test_fields_at_their_default_are_not_written_so_new_fields_keep_old_addresses() -> None:
    values = json.loads(record.encoded(lineage(Step("wanda", {}, {}, 1.0, 10))))
    assert values.keys() == {"created", "base", "recipe", "steps", "versions"}
    assert values["base"].keys() == {"name", "digest"}
    assert values["steps"][0].keys() == {"technique", "options", "sparsity", "seconds", "parameters"}
    evaluation = record.Evaluation(record.Data("text", "1", 1, 2, 0), 2, {}, {})
    assert json.loads(msgspec.json.encode(evaluation)).keys() == {"data", "window", "perplexity", "bytes"}


def test_prune_recover_and_quantise_are_three_links_over_two_artifacts(tmp_path: Path) -> None:
    assert [link.technique for link in chain.links(CHILD)] == ["wanda", "distill", "gptq"]
    chain.check(tmp_path, CHILD)


@pytest.mark.parametrize(
    ("forged", "sentence"),
    [
        (lineage(step("a", "b"), step("x", "c")), r"step 2 \(wanda\) did not start from the weights that wanda made"),
        (lineage(step("x", "d", "gptq"), parent=PARENT), r"step 3 \(gptq\) did not start from .* that distill made"),
        (
            msgspec.structs.replace(CHILD, parent=msgspec.structs.replace(PARENT, created="")),
            "the record of tiny is not the one that parent_digest names",
        ),
        (msgspec.structs.replace(CHILD, parent=None), "the record of tiny is not the one"),
        (msgspec.structs.replace(CHILD, parent_digest=""), "the record of tiny is not the one"),
    ],
)
def test_a_forged_chain_is_refused_naming_the_step(tmp_path: Path, forged: Lineage, sentence: str) -> None:
    with pytest.raises(ArtifactError, match=rf"lineage\.json is forged or damaged: {sentence}"):
        chain.check(tmp_path, forged)


def test_endlessly_nested_parents_are_refused_in_one_sentence(tmp_path: Path) -> None:
    text = record.encoded(lineage()).decode().rstrip("}\n ")
    (tmp_path / record.FILE).write_text(f'{text}, "parent": ' * 5000 + text + "}" * 5001)
    with pytest.raises(ArtifactError, match="is not a lineage record"):
        record.read(tmp_path)
