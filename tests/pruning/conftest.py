"""A tiny model, a text and a recipe for them."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.pruning import tiny

RECIPE = """
base = "{model}"
[calibration]
source = "{text}"
buckets = [0, 1, 2, 3, 4, 5, 6]
sequences = 12
tokens = 32
batch = 5
[evaluation]
source = "{text}"
buckets = [7, 8, 9]
tokens = 128
window = 32
{stages}
"""
SPARSEGPT = '[[stages]]\nkind = "layerwise"\ntechnique = { name = "sparsegpt", sparsity = "2:4" }\n'


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain text of 100 paragraphs."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(f"Paragraph {n} says that {n} times {n} is {n * n}." for n in range(100)))
    return path


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory with a random Llama of six blocks."""
    return tiny.save(tmp_path_factory.mktemp("model") / "tiny", num_hidden_layers=6)


@pytest.fixture(scope="session")
def base_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A --base-cache shared by all tests of a process, so that a base is imported and evaluated once."""
    return tmp_path_factory.mktemp("base-cache")


@pytest.fixture
def recipe(tmp_path: Path, model: Path, text: Path) -> Callable[[str], Path]:
    """Writes a recipe with the given stages."""

    def write(stages: str = SPARSEGPT) -> Path:
        path = tmp_path / "recipe.toml"
        path.write_text(RECIPE.format(model=model, text=text, stages=stages))
        return path

    return write
