"""deploy/requirements.lock has every package of pyproject.toml with its hashes, and a valid bill of materials."""

import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

LOCK = ROOT / "deploy" / "requirements.lock"
CHOSEN_BY_THE_MACHINE = {"torch"}


def pins() -> Iterator[tuple[Requirement, int]]:
    """Each locked package, and how many hashes it has."""
    for block in re.split(r"^(?=\w)", LOCK.read_text(), flags=re.MULTILINE):
        if not block.startswith("#"):
            yield Requirement(block.partition("\\")[0]), block.count("--hash=sha256:")


def wanted() -> Iterator[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    image = [line for extra in ("postgres", "redis", "otel") for line in extras[extra]]
    yield from map(Requirement, [*project["build-system"]["requires"], *project["project"]["dependencies"], *image])


def test_every_package_of_the_product_is_locked_within_its_range() -> None:
    locked: dict[str, list[str]] = {}
    for pin, _ in pins():
        (version,) = pin.specifier
        locked.setdefault(canonicalize_name(pin.name), []).append(version.version)
    for requirement in wanted():
        name = canonicalize_name(requirement.name)
        if name not in CHOSEN_BY_THE_MACHINE:
            assert [v for v in locked[name] if v in requirement.specifier] == locked[name], (
                f"`make lock`: {requirement}"
            )


def test_every_locked_package_has_hashes_and_no_address() -> None:
    assert [pin.name for pin, hashes in pins() if not hashes] == []
    assert "://" not in LOCK.read_text()
    assert not {pin.name for pin, _ in pins()} & CHOSEN_BY_THE_MACHINE


def test_the_bill_of_materials_lists_the_locked_packages(tmp_path: Path) -> None:
    output = tmp_path / "secateur.cdx.json"
    command = [
        str(Path(sys.executable).with_name("cyclonedx-py")),
        "requirements",
        str(LOCK),
        "--output-file",
        str(output),
    ]
    subprocess.run(command, check=True, capture_output=True)
    text = output.read_text()
    bill = json.loads(text)
    assert JsonStrictValidator(SchemaVersion.from_version(bill["specVersion"])).validate_str(text) is None
    assert {part["name"] for part in bill["components"]} == {pin.name for pin, _ in pins()}
