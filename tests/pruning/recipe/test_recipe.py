from pathlib import Path

import pytest

from pruning.errors import RecipeError
from pruning.recipe.options import Depth, Layerwise, Round
from pruning.recipe.recipe import read
from pruning.techniques import GPTQ, Magnitude
from tests.conftest import ROOT

QUARTER = ROOT / "examples" / "recipes" / "smollm2-48of64.toml"


def changed(tmp_path: Path, old: str, new: str) -> Path:
    text = QUARTER.read_text()
    assert old in text
    path = tmp_path / "recipe.toml"
    path.write_text(text.replace(old, new))
    return path


def test_a_recipe_of_the_examples() -> None:
    recipe = read(QUARTER)
    gptq = Layerwise(GPTQ("48:64", bits=8, group=32), order="sequential", correction=0.5)
    assert recipe.stages == (gptq, Round(bits=8, group=32, what="embeddings"))
    assert [text.weight for text in recipe.calibration.texts] == [2, 1, 1]
    assert [text.name for text in recipe.evaluation.every] == ["leads", "letters", "bank"]


def test_stages_of_both_kinds(tmp_path: Path) -> None:
    stages = """
[[stages]]
kind = "layerwise"
technique = { name = "magnitude", sparsity = 0.3 }
[[stages]]
kind = "depth"
remove = 2
[[stages]]
kind = "round"
"""
    path = changed(tmp_path, '[[stages]]\nkind = "round"\n', stages)
    assert read(path).stages[1:3] == (Layerwise(Magnitude(0.3)), Depth(2))


def test_equal_recipes_have_equal_digests_and_others_have_not(tmp_path: Path) -> None:
    same = changed(tmp_path, "\ntokens = 512\n", "\n")  # 512 is the default
    assert read(same).digest == read(QUARTER).digest
    assert hash(read(same)) == hash(read(QUARTER))
    assert read(changed(tmp_path, "sequences = 32", "sequences = 33")).digest != read(QUARTER).digest


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "sparsity =",
            "sparsty =",
            "unknown field `sparsty` - at `$.stages[0].technique`; allowed: bits, block, dampi",
        ),
        (
            "gptq",
            "gtpq",
            "`$.stages[0].technique.name`; allowed: admm, gptq, magnitude, obd, ria, sparsegpt, swaps, wanda",
        ),
        (
            '"layerwise"',
            '"layer"',
            "'layer' - at `$.stages[0].kind`; allowed: awq, continue, depth, distill, layerwise, reconstruct, round, "
            "shear, vocabulary, width",
        ),
        ("tokens = 512", "toks = 512", "`toks` - at `$.calibration`; allowed: batch, buckets, seed, sequences, source"),
        (
            "base =",
            "bse =",
            "unknown field `bse`; allowed: base, calibration, chat_template, evaluation, gates, stages",
        ),
        (
            '"48:64"',
            '"65:66"',
            '"65:66" is neither a fraction such as 0.5 nor "N:M" with 0 < N < M <= 64 - at `$.stages',
        ),
        ('"48:64"', '"64:32"', '"64:32" is neither'),
        ('"48:64"', '"half"', '"half" is neither'),
        ('"48:64"', "1.5", "Expected `float` < 1.0 - at `$.stages[0].technique.sparsity`"),
        ('"48:64"', "-0.5", "Expected `float` >= 0.0 - at `$.stages[0].technique.sparsity`"),
        (
            '"gptq", sparsity = "48:64", bits = 8, group = 32 }\norder = "sequential"\ncorrection = 0.5',
            '"magnitude", sparsity = "48:64" }\norder = "sequential"',
            'magnitude uses no inputs, so order = "sequential" would change nothing: leave it out - at `$.stages',
        ),
        ("window = 512", "window = 16384", "tokens = 8192 do not fill one window of 16384 - at `$.evaluation`"),
        ("[8, 9]", "[8, 12]", "Expected `int` <= 9 - at `$.evaluation.texts[0].buckets[1]`"),
        ("sequences = 32", "sequences = 0", "Expected `int` >= 1 - at `$.calibration.sequences`"),
        ("base =", "base", "is not TOML: Expected '=' after a key"),
        ("sequences = 32", f"sequences = {'9' * 5000}", "is not TOML: Exceeds the limit (4300 digits)"),
        ("sequences = 32", f"sequences = {'[' * 5000}{']' * 5000}", "is not TOML: maximum recursion depth exceeded"),
        ('"48:64"', '"48:64", damping = inf', "Expected a finite number - at `$.stages[0].technique.damping`"),
        ("[8, 9]", "[8, nan]", "Expected a finite number - at `$.evaluation.texts[0].buckets[1]`"),
    ],
)
def test_a_mistake_is_named_with_its_path_and_what_is_allowed(
    tmp_path: Path, old: str, new: str, expected: str
) -> None:
    path = changed(tmp_path, old, new)
    with pytest.raises(RecipeError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "marked.toml").write_bytes(b"\xef\xbb\xbf" + QUARTER.read_bytes())
    assert read(tmp_path / "marked.toml") == read(QUARTER)


def test_a_missing_recipe_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"none\.toml: cannot be read: No such file or directory"):
        read(tmp_path / "none.toml")
