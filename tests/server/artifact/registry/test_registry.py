"""The registry on SQLite and on PostgreSQL: what it records, and what may go into production."""

import json
from pathlib import Path

import msgspec
import pytest

from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.lineage import GateResult
from server.artifact.registry import rules
from server.artifact.registry.results import sign as sign_results
from server.artifact.registry.store import Registry
from server.artifact.signing import keys
from tests.server.artifact.registry.shop import FAILED, Shop


def test_from_candidate_to_production_and_back(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    for value in (1.0, 2.0, 3.0):
        shop.added(value)
    for number in (1, 2, 3):
        assert shop("promote", f"tiny@{number}", "--signers", shop.signers) == 0
        assert shop.production() == number
    assert "tiny@3 is in production (gates passed: faq)" in capsys.readouterr().out
    for number in (2, 1):
        assert shop("rollback", "tiny", "--signers", shop.signers) == 0
        assert shop.production() == number
    assert shop("rollback", "tiny") == 2
    assert "tiny@1 is the first in production: there is nothing to go back to" in capsys.readouterr().err
    assert shop("promote", "tiny@1") == 2
    assert "tiny@1 is in production already" in capsys.readouterr().err
    assert shop("list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["tiny@1", "tiny@2", "tiny@3"]
    assert lines[0].endswith("production")
    assert lines[2].endswith("candidate")


def test_show_prints_everything_about_a_version(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    path, hint = shop.added(1.0), keys.hint(keys.read_private(shop.key).public_key())
    file = results(shop.folder / "r.json", record.read(path).files["model.safetensors"])
    assert shop("add", "tiny", path, "--results", file) == 0
    source = record.digest_of(file)
    assert shop("approve", "tiny@candidate", "--key", shop.key, "--reason", "looks fine") == 0
    assert shop("promote", "tiny@1") == 0
    with Registry.open(shop.url) as registry:
        registry.bind(["help"], registry.resolve("tiny@production"))
    capsys.readouterr()
    assert shop("show", "tiny@production") == 0
    shown = capsys.readouterr().out
    for part in (
        "tiny@1 (candidate, production)",
        record.address(record.read(path)),
        str(path),
        "wanda (sparsity = 2:4)",
        "gate      faq: passed (nll_ratio 1.02; from lineage)",
        "looks fine",
        f"key {hint[:16]}: nothing -> version 1: gates passed: desk, faq",
        f"desk: passed (max_nll_ratio 1.03, max_nll_ratio limit 1.05; from {source[:16]}, not signed)",
        "skill     help since",
    ):
        assert part in shown
    assert shop("verify", "tiny@1", "--signers", shop.signers) == 0
    assert "the result of desk is not signed and does not count" in capsys.readouterr().out
    assert shop("verify", "tiny@1") == 0
    assert capsys.readouterr().out == "tiny@1 is whole\n"


def test_verify_names_who_signed_and_who_approved(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.added(1.0)
    assert shop("approve", "tiny@candidate", "--key", shop.key, "--reason", "looks fine") == 0
    assert shop("promote", "tiny@1", "--signers", shop.signers) == 0
    assert shop("verify", "tiny@1", "--signers", shop.signers) == 0
    assert "tiny@1 is whole; signed by alice; approval by alice" in capsys.readouterr().out


def test_the_same_artifact_is_the_same_version_wherever_it_lies(shop: Shop, tmp_path: Path) -> None:
    path = shop.added(1.0)
    path.rename(tmp_path / "moved")
    assert shop("verify", "tiny@1") == 2
    assert shop("add", "tiny", tmp_path / "moved") == 0
    assert shop("verify", "tiny@1") == 0
    with Registry.open(shop.url) as registry:
        assert registry.numbers("tiny") == [1]
        assert len(registry.resolve("tiny@1").gates) == 1


def test_the_difference_of_two_versions(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    shop.added(1.0)
    shop.added(2.0, FAILED)
    capsys.readouterr()
    assert shop("diff", "tiny@1", "tiny@2") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "tiny@1 | tiny@2"
    assert "lineage.evaluation.perplexity.pruned: 17.0 | 18.0" in lines
    assert "gates.faq: True | False" in lines
    assert any(line.startswith("lineage.steps.0.digest: ") for line in lines)
    assert not [line for line in lines if "dense" in line or "a.weight" in line]


@pytest.mark.parametrize(
    ("gates", "sentence"),
    [
        (None, "tiny@1 has no gate result: it was not evaluated on a task"),
        ((), "tiny@1 has no gate result"),
        (FAILED, "tiny@1 failed its gate faq"),
    ],
)
def test_without_a_passed_gate_only_a_signed_override_promotes(
    shop: Shop, gates: tuple[GateResult, ...] | None, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.added(1.0, gates)
    before = shop.rows()
    assert shop("promote", "tiny@1") == 2
    assert sentence in capsys.readouterr().err
    assert shop.rows() == before
    assert shop("approve", "tiny@1", "--key", shop.key, "--reason", "fine by me") == 0
    assert shop("promote", "tiny@1", "--signers", shop.signers) == 2  # an approval is no override
    assert shop("approve", "tiny@1", "--key", shop.key, "--reason", " ", "--override") == 2
    assert "an approval needs a reason" in capsys.readouterr().err
    assert shop("approve", "tiny@1", "--key", shop.key, "--reason", "demo on Friday", "--override") == 0
    assert shop("promote", "tiny@1") == 2
    assert "its override counts only with --signers" in capsys.readouterr().err
    assert shop("promote", "tiny@1", "--signers", shop.signers) == 0
    assert "overridden by alice: demo on Friday" in capsys.readouterr().out


def test_an_override_by_an_unknown_signer_or_for_another_version_does_not_count(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.added(1.0, None)
    shop.added(2.0, None)
    keys.create(tmp_path / "eve.pem", elliptic=False)
    assert shop("approve", "tiny@1", "--key", tmp_path / "eve.pem", "--reason", "trust me", "--override") == 0
    assert shop("promote", "tiny@1", "--signers", shop.signers) == 2
    assert "is signed with the key" in capsys.readouterr().err
    assert shop("approve", "tiny@1", "--key", shop.key, "--reason", "yes", "--override") == 0
    with Registry.open(shop.url) as registry:
        registry.approve(registry.resolve("tiny@2"), registry.resolve("tiny@1").approvals[-1])
    assert shop("promote", "tiny@2", "--signers", shop.signers) == 2
    assert "is forged: alice did not sign it" in capsys.readouterr().err
    with Registry.open(shop.url) as registry:
        signed = registry.resolve("tiny@1").approvals[-1]
        registry.approve(registry.resolve("tiny@1"), msgspec.structs.replace(signed, signature="x", added="9"))
    assert shop("promote", "tiny@1", "--signers", shop.signers) == 2
    assert "is forged: alice did not sign it" in capsys.readouterr().err
    assert shop.production() is None


def results(path: Path, weights: str, *, passed: bool = True, high: float = 1.03, task: str = "desk") -> Path:
    """A file as `secateur evaluate` writes it, with more in it than is read."""
    interval = {"value": 1.01, "low": 1.0, "high": high, "n": 60}
    gate = {"gate": "max_nll_ratio", "limit": 1.05, "measured": interval, "passed": passed}
    path.write_text(json.dumps({"task": task, "kind": "qa", "weights": weights, "gates": [gate], "rows": []}))
    return path


def test_results_count_only_for_the_same_weights(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shop.added(1.0, None)
    weights = record.read(path).files["model.safetensors"]
    assert shop("add", "tiny", path, "--results", results(tmp_path / "r.json", "0" * 64)) == 2
    assert "r.json belongs to another artifact" in capsys.readouterr().err
    before = shop.rows()
    assert shop("add", "tiny", path, "--results", results(tmp_path / "r.json", weights, passed=True, high=1.9)) == 2
    assert "r.json contradicts itself" in capsys.readouterr().err
    assert shop.rows() == before
    failing = results(tmp_path / "r.json", weights, passed=False, high=1.9)
    assert shop("add", "tiny", path, "--results", failing) == 0
    assert shop("promote", "tiny@1") == 2
    assert shop("add", "tiny", path, "--results", results(tmp_path / "r.json", weights)) == 0
    assert shop("promote", "tiny@1") == 0
    assert "gates passed: desk" in capsys.readouterr().out


def test_a_file_of_results_cannot_revoke_a_failure_in_the_record(
    shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = shop.added(1.0, FAILED)
    weights = record.read(path).files["model.safetensors"]
    assert shop("add", "tiny", path, "--results", results(tmp_path / "r.json", weights, task="faq")) == 0
    assert shop("promote", "tiny@1", "--signers", shop.signers) == 2
    assert "failed its gate faq" in capsys.readouterr().err
    assert shop("list") == 0
    assert "failed" in capsys.readouterr().out
    assert shop.production() is None


def test_with_signers_only_signed_results_count(shop: Shop, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, file = shop.added(1.0, None), tmp_path / "r.json"
    other = record.read(shop.artifact(2.0, None)).files["model.safetensors"]
    weights = record.read(path).files["model.safetensors"]
    promote = ("promote", "tiny@1", "--signers", shop.signers)
    assert shop("add", "tiny", path, "--results", results(file, weights)) == 0
    assert shop(*promote) == 2
    assert "has no gate result that an allowed signer signed (`secateur evaluate --key`)" in capsys.readouterr().err
    keys.create(tmp_path / "eve.pem", elliptic=False)
    assert shop("add", "tiny", path, "--results", file, "--key", tmp_path / "eve.pem") == 0
    assert shop(*promote) == 2
    assert shop("verify", "tiny@1", "--signers", shop.signers) == 2
    assert "the result of desk of tiny@1 from" in (error := capsys.readouterr().err)
    assert "is signed with the key" in error
    sign_results(results(file, other), keys.read_private(shop.key))
    results(file, weights)
    assert shop("add", "tiny", path, "--results", file) == 2
    assert "r.json.sig signs other results than" in capsys.readouterr().err
    sign_results(file, keys.read_private(shop.key))
    assert shop("add", "tiny", path, "--results", file) == 0
    assert shop(*promote) == 0
    assert "gates passed: desk" in capsys.readouterr().out
    failing = results(file, weights, passed=False, high=1.9)
    assert shop("add", "tiny", path, "--results", failing, "--key", shop.key) == 0
    with Registry.open(shop.url) as registry:
        assert rules.judged(registry.resolve("tiny@1"), keys.Signers.read(shop.signers)) == {"desk": False}


def test_a_signed_result_of_other_weights_does_not_count(shop: Shop, tmp_path: Path) -> None:
    paths = [shop.added(value, None) for value in (1.0, 2.0)]
    weights = record.read(paths[0]).files["model.safetensors"]
    file = results(tmp_path / "r.json", weights)
    assert shop("add", "tiny", paths[0], "--results", file, "--key", shop.key) == 0
    with Registry.open(shop.url) as registry:
        gates = registry.resolve("tiny@1").gates
        copied = registry.add("tiny", paths[1], record.read(paths[1]), gates)
        signers = keys.Signers.read(shop.signers)
        assert rules.judged(registry.resolve("tiny@1"), signers) == {"desk": True}
        assert rules.judged(copied, signers) == {}
        assert "is forged: alice did not sign it" in rules.faults(registry, copied, signers)[0]


def test_list_says_of_each_result_whether_its_signature_checks(shop: Shop, capsys: pytest.CaptureFixture[str]) -> None:
    path = shop.added(1.0)
    weights = record.read(path).files["model.safetensors"]
    unsigned = results(shop.folder / "a.json", weights)
    signed = results(shop.folder / "b.json", weights, task="chat")
    sign_results(signed, keys.read_private(shop.key))
    assert shop("add", "tiny", path, "--results", unsigned, signed) == 0
    capsys.readouterr()
    assert shop("list") == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert shop("list", "--signers", shop.signers) == 0
    lines = capsys.readouterr().out.splitlines()[1:]
    assert lines[0] == "  faq: passed, signed by alice"
    assert lines[1].startswith("  desk: passed, does not count: the result of desk of tiny@1 from ")
    assert lines[1].endswith(" is not signed")
    assert lines[2] == "  chat: passed, signed by alice"
    assert shop("list", "--json", "--signers", shop.signers) == 0
    [row] = msgspec.json.decode(capsys.readouterr().out)
    assert (row["name"], row["path"], row["aliases"]) == ("tiny@1", str(path), ["candidate"])
    assert row["gates"] == {"faq": True, "desk": True, "chat": True}
    assert [(one["task"], one["valid"], one["signer"]) for one in row["results"]] == [
        ("faq", True, "alice"),
        ("desk", False, ""),
        ("chat", True, "alice"),
    ]
    (path / record.FILE).write_bytes((path / record.FILE).read_bytes() + b" ")
    assert shop("list", "--signers", shop.signers) == 0
    [line] = [one for one in capsys.readouterr().out.splitlines() if one.startswith("  faq:")]
    assert line.endswith(f"does not count: {path / record.FILE} was changed or swapped after alice signed")


def test_a_signer_who_may_not_evaluate_signs_no_result_that_counts(
    shop: Shop, capsys: pytest.CaptureFixture[str]
) -> None:
    shop.added(1.0)
    shop.signers.write_text(f"{shop.signers.read_text().strip()} roles=sign\n")
    capsys.readouterr()
    assert shop("list", "--signers", shop.signers) == 0
    assert "faq: passed, does not count: the record is signed by alice, whose line" in capsys.readouterr().out
