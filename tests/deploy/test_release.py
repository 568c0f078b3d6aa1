"""`make release`: one version in one place, the changelog's section, and checksums that the usual tool accepts."""

import re
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest

from deploy import release
from tests.conftest import ROOT


def test_the_version_is_one_number() -> None:
    tags = {
        found
        for file in (ROOT / "deploy/kubernetes").rglob("kustomization.yaml")
        for found in re.findall(r"newTag: ([\w.]+)", file.read_text())
    }
    assert tags == {release.version()} == {version("secateur")}


def test_the_section_of_a_release_ends_at_the_next() -> None:
    changelog = "# Changelog\n\n## 1.10.0 - soon\n\n- A.\n\n## 1.1.0\n\n- B.\n\n## 1.0.0\n- C.\n"
    assert release.section(changelog, "1.1.0") == "## 1.1.0\n\n- B.\n"
    assert release.section(changelog, "1.0.0") == "## 1.0.0\n- C.\n"
    with pytest.raises(ValueError, match="no section 1"):
        release.section(changelog, "1")
    assert release.section((ROOT / "docs/CHANGELOG.md").read_text(), release.version())


def test_checksums_are_those_of_sha256sum(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/CHANGELOG.md").write_text("## 7.0.0\n\n- All.\n")
    (tmp_path / "pyproject.toml").write_text('[project]\nversion = "7.0.0"\n')
    (tmp_path / "some.whl").write_bytes(b"wheel")
    monkeypatch.setattr(release, "ROOT", tmp_path)
    assert release.main([str(tmp_path / "some.whl")]) == 0
    folder = tmp_path / "build/release"
    assert {file.name for file in folder.iterdir()} == {"some.whl", "secateur-7.0.0-changes.md", "SHA256SUMS"}
    assert capsys.readouterr().out == (folder / "SHA256SUMS").read_text()
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=folder, check=True, capture_output=True)
