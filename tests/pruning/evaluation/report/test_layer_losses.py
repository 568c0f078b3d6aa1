"""`secateur prune --explain`: the table and chart of a run, a reused artifact, and an artifact without losses."""

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import msgspec
import pytest
from safetensors.torch import load_file

from pruning.commands.__main__ import main
from pruning.evaluation.report.layer_chart import svg
from pruning.evaluation.report.layer_losses import NOTHING, explanation, grids, reason
from pruning.run import pipeline
from server.artifact.checkpoint.lineage import Lineage, Loss, Step
from server.artifact.checkpoint.reader import Artifact
from tests.pruning.conftest import RECIPE, SPARSEGPT

SVG = "{http://www.w3.org/2000/svg}"
DEPTH = '[[stages]]\nkind = "depth"\nremove = 2\n'
Write = Callable[[str], Path]
Run = Callable[..., int]
GPTQ = '[[stages]]\nkind = "layerwise"\ntechnique = { name = "gptq" }\n'


@pytest.fixture(scope="module")
def run(base_cache: Path) -> Run:
    """Carries out a recipe into `folder`/out; returns the exit code."""

    def prune(recipe: Path, folder: Path, *more: str) -> int:
        return main(["prune", str(recipe), "--output", str(folder / "out"), "--base-cache", str(base_cache), *more])

    return prune


@pytest.fixture(scope="module")
def lineage(run: Run, tmp_path_factory: pytest.TempPathFactory, model: Path, text: Path) -> Lineage:
    """The lineage of an artifact without layer losses."""
    folder = tmp_path_factory.mktemp("depth")
    (folder / "recipe.toml").write_text(RECIPE.format(model=model, text=text, stages=DEPTH))
    assert run(folder / "recipe.toml", folder) == 0
    return Artifact.open(folder / "out").lineage


@pytest.mark.slow
def test_a_reused_artifact_is_explained_like_a_fresh_run(
    recipe: Write, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = recipe(DEPTH + SPARSEGPT + GPTQ)
    assert run(path, tmp_path, "--explain") == 0
    printed = capsys.readouterr().out
    drawing = tmp_path / "out.explain.svg"
    first = drawing.read_text()
    lineage = Artifact.open(tmp_path / "out").lineage
    monkeypatch.setattr(pipeline, "run", None)  # nothing is computed again
    assert run(path, tmp_path, "--explain", str(tmp_path / "new" / "mine.svg")) == 0
    assert (tmp_path / "new" / "mine.svg").read_text() == first
    assert capsys.readouterr().out.replace("new/mine.svg", "out.explain.svg") == printed
    depth, sparse, rounded = lineage.steps
    assert f"step 1, depth: removed blocks {', '.join(map(str, depth.removed_blocks))}" in printed
    assert sparse.losses.keys() == rounded.losses.keys() == sparse.sparsity.keys()
    for name, loss in sparse.losses.items():
        assert 0 < loss.error < 1
        assert f"{loss.error:.3%}" in printed, name
    assert "step 2, sparsegpt: relative output error, exact on the calibration data" in printed
    assert "this is rounding" in printed.split("step 3, gptq")[1]


def test_the_chart_is_one_plain_file_for_light_and_dark(recipe: Write, run: Run, tmp_path: Path) -> None:
    assert run(recipe(SPARSEGPT), tmp_path, "--explain") == 0
    text = (tmp_path / "out.explain.svg").read_text()
    root = ElementTree.fromstring(text)
    assert root.attrib["aria-labelledby"] == "title about"
    assert [root.find(f"{SVG}title"), root.find(f"{SVG}desc")] != [None, None]
    assert "prefers-color-scheme: dark" in text
    assert not [word for word in ("<script", "href", "url(", "@import") if word in text]
    [step] = Artifact.open(tmp_path / "out").lineage.steps
    bars = {(bar.attrib["class"], bar.findtext(f"{SVG}title")): bar for bar in root.iter(f"{SVG}rect")}
    most = max(loss.error for loss in step.losses.values())
    for block in range(6):
        for matrix in ("self_attn.q_proj", "mlp.down_proj"):
            error = step.losses[f"model.layers.{block}.{matrix}.weight"].error
            called = f"{matrix.split('.')[1]}, block {block}: "
            height = float(bars["error", f"{called}{error:.3%}"].attrib["height"])
            assert height == pytest.approx(34 * error / most, abs=0.006)
            assert bars["zeros", f"{called}50.000%"].attrib["height"] == "17.00"


def test_awq_and_masks_say_what_they_measured(
    recipe: Write, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanda = '[[stages]]\nkind = "layerwise"\ntechnique = { name = "wanda", sparsity = 0.5 }\n'
    assert run(recipe(wanda + '[[stages]]\nkind = "awq"\n'), tmp_path, "--explain") == 0
    masks, rounded = capsys.readouterr().out.split("step 2, awq")
    assert "diagonal approximation" in masks
    assert "exact on the calibration data" in rounded
    assert all(0 < loss.error < 0.1 for loss in Artifact.open(tmp_path / "out").lineage.steps[1].losses.values())


def test_rounding_without_calibration_is_explained_and_drawn(
    recipe: Write, run: Run, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(recipe('[[stages]]\nkind = "round"\nwhat = "blocks"\nbits = 4\n'), tmp_path, "--explain") == 0
    assert "step 1, round: relative output error, change of the weights alone" in capsys.readouterr().out
    artifact = Artifact.open(tmp_path / "out")
    name = "model.layers.2.mlp.up_proj.weight"
    dense, rounded = load_file(model / "model.safetensors")[name].double(), artifact.tensor(name).double()
    expected = float((dense - rounded).square().sum() / dense.square().sum())
    assert artifact.lineage.steps[0].losses[name].error == pytest.approx(expected, rel=1e-5)
    assert "down_proj, block 5" in (tmp_path / "out.explain.svg").read_text()


def test_an_artifact_without_losses_says_so(
    recipe: Write, run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(recipe(DEPTH), tmp_path, "--explain") == 0
    assert NOTHING in capsys.readouterr().out
    assert not (tmp_path / "out.explain.svg").exists()


def test_a_file_that_is_no_svg_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["prune", "--explain", "recipe.toml", "--output", str(tmp_path)])
    assert "'recipe.toml' is no .svg file" in capsys.readouterr().err


def loss(error: float, removed: float, rank: float = 0.5) -> Loss:
    return Loss(error=error, measure="gram", removed=removed, outliers=0.01, rank=rank)


def test_the_reason_is_the_factor_further_above_the_median() -> None:
    others = [loss(0.02, 0.05), loss(0.02, 0.05), loss(0.02, 0.05)]
    assert "20.0% of |W| x input was removed (median 5.0%)" in reason(loss(0.08, 0.2), others)
    made_up = reason(loss(0.045, 0.05, rank=0.9), others)
    assert made_up == "remaining weights compensate 10% of the loss (median 60%); effective rank 0.90 of its inputs"
    added = reason(loss(0.06, 0.05), others)
    assert added.startswith("removed parts add up: the error is 1.20 x their share (median 0.40)")
    assert "this is rounding; 1.0% of its weights are outliers" in reason(loss(0.01, 0.0), others)


def test_names_are_short_if_unambiguous_and_escaped(lineage: Lineage) -> None:
    names = ["h.0.attn.c_proj.weight", "h.0.mlp.c_proj.weight", "h.0.attn.c_attn.weight"]
    step = Step("<b>", {}, {}, 1.0, 1, losses=dict.fromkeys(names, loss(0.1, 0.2)))
    one = msgspec.structs.replace(lineage, steps=(step,))
    [layers] = grids(one)
    assert layers.matrices == ("attn.c_proj", "mlp.c_proj", "c_attn")
    assert "10.000%" in explanation(one)
    ElementTree.fromstring(svg('a & "b"', [layers]))


def test_bars_are_numbered_by_block(lineage: Lineage) -> None:
    """Each bar, or every n-th if space is short; the number is centred below its bar, in both columns."""
    for blocks, said in ((4, 4), (30, 15), (126, 13)):
        names = [f"layers.{block}.o_proj.weight" for block in range(blocks)]
        step = Step("wanda", {}, {}, 1.0, 1, losses=dict.fromkeys(names, loss(0.1, 0.2)))
        [layers] = grids(msgspec.structs.replace(lineage, steps=(step,)))
        root = ElementTree.fromstring(svg("a", [layers]))
        ticks = [
            (tick.text, float(tick.attrib["x"])) for tick in root.iter(f"{SVG}text") if "tick" in tick.get("class", "")
        ]
        errors = [bar for bar in root.iter(f"{SVG}rect") if bar.get("class") == "error"]
        bars = {bar.findtext(f"{SVG}title", "").split(": ")[0].split()[-1]: bar.attrib for bar in errors}
        assert len(ticks) == 2 * said
        for number, x in ticks[said:]:
            bar = bars[str(number)]
            assert x == pytest.approx(float(bar["x"]) + float(bar["width"]) / 2, abs=0.02)
