"""`secateur prune --check`: refuses in a second, without torch, what the run itself would refuse."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pruning.commands.prune import main
from tests.pruning import tiny
from tests.pruning.conftest import SPARSEGPT

Write = Callable[..., Path]
TEMPLATE = "{% for message in messages %}<{{ message.role }}> {{ message.content }}\n{% endfor %}"


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "chat.jinja"
    path.write_text(TEMPLATE)
    return path


def check(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, list[dict[str, Any]]]:
    code = main(["--check", "--json", str(path)])
    return code, json.loads(capsys.readouterr().out or "[]")


def given(path: Path, template: Path) -> Path:
    path.write_text(f'chat_template = "{template}"\n{path.read_text()}')
    return path


def test_a_recipe_that_fits_passes(recipe: Write, template: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = check(given(recipe(), template), capsys)
    assert (code, {one["state"] for one in found}) == (0, {"ok"})
    assert [one["check"] for one in found if one["check"] == "disk"]


def test_a_base_without_a_template_is_refused_with_what_to_do(
    recipe: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    code, found = check(recipe(), capsys)
    [failed] = [one for one in found if one["state"] == "failed"]
    assert (code, failed["check"]) == (2, "chat template")
    assert "`chat_template` in the recipe" in failed["remedy"]


WIDTH = '[[stages]]\nkind = "width"\nffn = {}\nimportance = {{ name = "taylor" }}\n'
REFUSED = {
    "remove = 6, and there are 6 blocks": '[[stages]]\nkind = "depth"\nremove = 6\n',
    "kv_groups = 2, and there are 2 KV groups": (
        '[[stages]]\nkind = "width"\nkv_groups = 2\nimportance = { name = "taylor" }\n'
    ),
    "ffn = 160 would leave 160 of the model's 128": WIDTH.format(160),
    "ffn = 128 would leave 128 of the model's 128": WIDTH.format(128),
    "ffn = 0.95 would leave 0 of the model's 128": WIDTH.format(0.95),
    "layers = 7, and there are 6": '[[stages]]\nkind = "shear"\ntokens = 64\nlayers = 7\n',
    "whole groups of 48": SPARSEGPT.replace("2:4", "24:48"),
    "need 16 sequences": '[[stages]]\nkind = "reconstruct"\nheld_out = 14\n',
    "it needs the base's blocks": '[[stages]]\nkind = "depth"\nremove = 1\n[[stages]]\nkind = "reconstruct"\n',
}


@pytest.mark.parametrize("rotary", [True, False])
def test_sequences_beyond_the_positions_are_a_finding(
    rotary: bool, recipe: Write, template: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tiny.save(tmp_path / "short")
    config = json.loads((short / "config.json").read_text()) | {"max_position_embeddings": 16}
    kept = {key: value for key, value in config.items() if rotary or "rope" not in key}
    (short / "config.json").write_text(json.dumps(kept))
    path = given(recipe(), template)
    path.write_text(path.read_text().replace(str(model), str(short)))
    code, found = check(path, capsys)
    sentences = [one["found"] for one in found if one["state"] == ("warning" if rotary else "failed")]
    assert code == (0 if rotary else 2)
    assert len(sentences) == (2 if rotary else 1)
    assert "calibration.tokens = 32 is beyond the 16 positions of the model" in sentences[0]


@pytest.mark.parametrize("what", REFUSED)
def test_a_stage_that_does_not_fit_is_refused_and_the_run_refuses_it_too(
    what: str, recipe: Write, template: Path, tmp_path: Path, base_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = given(recipe(REFUSED[what]), template)
    code, found = check(path, capsys)
    [failed] = [one for one in found if one["state"] == "failed"]
    assert code == 2
    assert what in failed["found"]
    assert "at `$.stages[" in failed["found"]
    assert main([str(path), "--output", str(tmp_path / "out"), "--base-cache", str(base_cache)]) == 2


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("text.txt", "texts.txt", "texts.txt"),
        ('base = "', 'base = "/nowhere', "/nowhere"),
        ("chat.jinja", "chats.jinja", "chats.jinja"),
        ("[calibration]", 'tasks = ["none.toml"]\n[calibration]', "none.toml"),
    ],
)
def test_what_is_named_and_missing_is_refused(
    old: str, new: str, what: str, recipe: Write, template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = given(recipe(), template)
    path.write_text(path.read_text().replace(old, new))
    code, found = check(path, capsys)
    assert code == 2
    assert any(what in one["found"] for one in found if one["state"] == "failed")


def test_a_text_of_fewer_bytes_than_tokens_is_refused_and_no_base_is_imported(
    recipe: Write, template: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = given(recipe(), template)
    path.write_text(path.read_text().replace("sequences = 12", "sequences = 1200"))
    code, found = check(path, capsys)
    [failed] = [one["found"] for one in found if one["state"] == "failed"]
    assert code == 2
    assert "but calibration needs 1200 x 32 = 38400 tokens" in failed
    assert main([str(path), "--output", str(tmp_path / "out"), "--base-cache", str(tmp_path / "cache")]) == 2
    assert failed in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


def test_a_text_of_too_few_bytes_for_usual_tokens_is_a_warning(
    recipe: Write, template: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = given(recipe(), template)
    path.write_text(path.read_text().replace("tokens = 128", "tokens = 512"))
    code, found = check(path, capsys)
    texts = {one["state"]: one["found"] for one in found if one["check"] == "texts"}
    assert code == 0
    assert set(texts) == {"ok", "warning"}
    assert f"{text} holds " in texts["warning"]
    assert "but evaluation needs 16 x 32 = 512 tokens" in texts["warning"]
    assert "only the run counts" in texts["warning"]


def test_a_source_that_is_not_read_is_named(
    recipe: Write, template: Path, text: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("datasets")
    path = given(recipe(), template)
    head, _, tail = path.read_text().partition(f'source = "{text}"')
    path.write_text(f'{head}source = "dataset:some/where"{tail}')
    _, found = check(path, capsys)
    [said] = [one["found"] for one in found if one["check"] == "texts"]
    assert said == "2 sources are there, tokens estimated at 4 bytes each; found but not read: dataset:some/where"


@pytest.mark.parametrize("broken", [b"{% for %}", b"no messages", b"{{ raise_exception('no') }}", b"\xff\xfe"])
def test_a_template_that_writes_no_prompt_is_refused(
    broken: bytes, recipe: Write, template: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = given(recipe(), template)
    template.write_bytes(broken)
    code, found = check(path, capsys)
    assert (code, [one["check"] for one in found if one["state"] == "failed"]) == (2, ["chat template"])


@pytest.mark.parametrize("typo", ["", "sequences", "technique = {", "sequential"])
def test_neither_a_check_nor_a_typo_imports_torch(typo: str, recipe: Write, template: Path) -> None:
    path = given(recipe(SPARSEGPT.replace("technique", 'order = "sequential"\ntechnique')), template)
    path.write_text(path.read_text().replace(typo, f"{typo}x") if typo else path.read_text())
    words = ["prune", str(path), "--check"] if not typo else ["prune", str(path), "--output", "/nowhere/out"]
    program = (
        f"import sys; from server.commands.__main__ import main; code = main({words!r}); "
        "assert not {'torch', 'transformers', 'gguf'} & sys.modules.keys(), 'imported'; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == (2 if typo else 0), done.stderr
    assert not typo or str(path) in done.stderr


def test_a_model_of_unknown_type_is_refused(
    recipe: Write, template: Path, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny.save(tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model_type": "lama"}))
    path = given(recipe(), template)
    path.write_text(path.read_text().replace(str(model), str(other)))
    code, found = check(path, capsys)
    assert code == 2
    assert any("model_type is 'lama'" in one["found"] for one in found)
