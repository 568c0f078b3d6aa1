"""The provenance that the pipeline records: digest chain, model card and bill of materials."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import msgspec
import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint import card, chain
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.digest import weights_digest
from server.artifact.checkpoint.reader import Artifact
from server.storage.files import write_atomically
from server.text.tokenizer import Tokenizer
from tests.pruning.conftest import RECIPE, SPARSEGPT
from tests.pruning.run.conftest import Prune

Write = Callable[[str], Path]
DISTILL = '[[stages]]\nkind = "distill"\ntokens = 64\nlength = 16\nbatch = 2\nheld_out = 2\n'
GPTQ = '[[stages]]\nkind = "layerwise"\ntechnique = { name = "gptq" }\n'


@pytest.fixture(scope="module")
def generations(
    tmp_path_factory: pytest.TempPathFactory, prune: Prune, model: Path, text: Path
) -> tuple[Artifact, Artifact]:
    """A pruned and recovered artifact, and one quantised from it."""
    folder = tmp_path_factory.mktemp("generations")
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(model=model, text=text, stages=SPARSEGPT + DISTILL))
    assert prune(recipe, folder / "parent") == 0
    recipe.write_text(RECIPE.format(model=folder / "parent", text=text, stages=GPTQ))
    assert prune(recipe, folder / "child") == 0
    return Artifact.open(folder / "parent"), Artifact.open(folder / "child")


@pytest.mark.slow
def test_every_step_records_the_digests_of_weights_before_and_after(
    generations: tuple[Artifact, Artifact], model: Path, base_cache: Path
) -> None:
    parent, child = generations
    pruned, recovered = parent.lineage.steps
    base = base_artifact(str(model), base_cache)
    assert pruned.parent_digest == weights_digest(base)
    assert pruned.digest == recovered.parent_digest
    assert recovered.digest == weights_digest(parent)
    [quantised] = child.lineage.steps
    assert quantised.parent_digest == recovered.digest
    assert quantised.digest == weights_digest(child)
    assert len({pruned.parent_digest, pruned.digest, quantised.digest}) == 3


def test_the_child_keeps_the_whole_record_of_its_parent(generations: tuple[Artifact, Artifact]) -> None:
    parent, child = generations
    assert child.lineage.parent == parent.lineage
    assert child.lineage.parent_digest == record.address(parent.lineage)
    assert [step.technique for step in chain.links(child.lineage)] == ["sparsegpt", "distill", "gptq"]
    schema = json.loads(record.schema())
    jsonschema.validate(json.loads((child.path / record.FILE).read_bytes()), schema)


def test_the_model_card_says_what_the_record_says(generations: tuple[Artifact, Artifact]) -> None:
    for artifact in generations:
        text = (artifact.path / "README.md").read_text()
        _, front, body = text.split("---\n", 2)
        values: dict[str, Any] = yaml.safe_load(front)
        assert values["base_model"] == "tiny"
        assert values["base_model_relation"] in ("finetune", "quantized")
        assert values["license"] == "unknown"
        assert {"secateur", "pruned", "sparsegpt", "distill"} <= set(values["tags"])
        headings = [line[3:] for line in body.splitlines() if line.startswith("## ")]
        assert headings == ["Intended use", "Limits", "What was done", "Before and after", "Data"]
        evaluation = artifact.lineage.evaluation
        assert evaluation
        for key in ("dense", "int8", "pruned"):
            assert f"| {evaluation.bytes[key]:,} | {evaluation.perplexity[key]:.2f} |" in body
        assert f"| {artifact.lineage.base.name}, 16 bits |" in body
        assert artifact.lineage.calibration
        assert artifact.lineage.calibration.digest in body
        assert record.digest_of(artifact.path / "README.md") == artifact.lineage.files["README.md"]


@pytest.mark.parametrize(
    ("steps", "called"),
    [
        ({"sparsegpt": {"sparsity": "2:4"}, "distill": {}, "export": {}}, "pruned"),
        ({"depth": {}, "round": {}}, "pruned"),
        ({"gptq": {"sparsity": 0.5}}, "pruned"),
        ({"gptq": {"sparsity": 0}, "round": {}, "distill": {}}, "quantised"),
        ({"awq": {}}, "quantised"),
        ({"continue": {}, "export": {}}, "trained"),
        ({"export": {}}, "exported"),
    ],
)
def test_a_card_calls_pruned_only_what_lost_weights(
    generations: tuple[Artifact, Artifact], steps: dict[str, dict[str, Any]], called: str
) -> None:
    made = tuple(record.Step(name, options, {}, 1.0, 1) for name, options in steps.items())
    text = card.render(msgspec.structs.replace(generations[0].lineage, steps=made), {}).decode()
    assert f"\n# tiny, {called}\n" in text
    assert f"\n- {called}\n" in text


def test_the_card_of_a_child_shows_the_first_base_too(generations: tuple[Artifact, Artifact]) -> None:
    parent, child = generations
    assert parent.lineage.evaluation
    first = parent.lineage.evaluation.perplexity["dense"]
    assert f"| tiny, 16 bits, the first base | 515,776 | {first:.2f} |" in (child.path / "README.md").read_text()
    assert "the first base" not in (parent.path / "README.md").read_text()


def test_the_bill_of_materials_is_valid_cyclonedx(generations: tuple[Artifact, Artifact]) -> None:
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    for number, artifact in enumerate(generations, 1):
        text = (artifact.path / "bom.cdx.json").read_text()
        assert validator.validate_str(text) is None
        component = json.loads(text)["metadata"]["component"]
        [digest] = component["hashes"]
        assert digest == {"alg": "SHA-256", "content": artifact.lineage.files["model.safetensors"]}
        assert len(component["pedigree"]["ancestors"]) == number
        assert validator.validate_str(text.replace('"bomFormat"', '"bomFromat"')) is not None


@pytest.mark.slow
def test_killed_between_the_documents_and_the_record_it_assembles_the_artifact_again(
    recipe: Write, prune: Prune, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []

    def killed(path: Path, content: bytes) -> None:
        if path.name == record.FILE:
            raise KeyboardInterrupt
        written.append(path.name)
        write_atomically(path, content)

    path = recipe(SPARSEGPT)
    with monkeypatch.context() as patch:
        patch.setattr("pruning.run.record.write_atomically", killed)
        assert prune(path, tmp_path / "out") == 130
    assert written[-2:] == ["README.md", "bom.cdx.json"]
    assert not (tmp_path / "out").exists()
    assert prune(path, tmp_path / "out") == 0
    Artifact.open(tmp_path / "out")


def test_a_given_chat_template_is_in_the_artifact_and_its_record(
    recipe: Write, prune: Prune, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    template = tmp_path / "chat.jinja"
    template.write_text("{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}")
    path = recipe(SPARSEGPT)
    path.write_text(f'chat_template = "{template}"\n{path.read_text()}')
    assert prune(path, tmp_path / "out") == 0
    made = Artifact.open(tmp_path / "out")
    assert made.lineage.recipe["chat_template"] == str(template)
    assert (made.path / "chat_template.jinja").read_text() == template.read_text()
    assert Tokenizer.load(made.path).chat([{"role": "user", "content": "Hello"}])
    caplog.clear()
    template.write_text(template.read_text().replace(": ", "> "))
    assert prune(path, tmp_path / "out") == 0
    assert "was made with another recipe or other data: starting over" in caplog.text
