"""Signatures of both kinds, with OpenSSF's own verifier as witness, and every tampering refused by the file's name."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import model_signing
import msgspec
import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from server.artifact.checkpoint import lineage as record
from server.artifact.signing import openssf
from server.artifact.signing.keys import Signers, read_private
from server.commands.__main__ import main
from tests.server.artifact.signing.artifacts import make

KINDS = ("ed25519", "ec")

LINE = "{line}"
"""Alice's."""


class Signed:
    """A signed artifact, the key and the file of signers."""

    def __init__(self, folder: Path, kind: str) -> None:
        self.path, self.key, self.signers = folder / "model", folder / "key.pem", folder / "signers"
        make(self.path)
        self.kind = kind


@pytest.fixture(params=KINDS)
def signed(tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Signed:
    made = Signed(tmp_path, request.param)
    assert main(["keys", "signer", "alice", "--key", str(made.key), "--kind", request.param]) == 0
    made.signers.write_text(f"# who may\n{capsys.readouterr().out.splitlines()[-1]}  # since today\n")
    assert main(["sign", str(made.path), "--key", str(made.key)]) == 0
    capsys.readouterr()
    return made


def verify(made: Signed) -> int:
    return main(["verify", str(made.path), "--signers", str(made.signers)])


def test_a_signature_verifies_and_names_the_signer(signed: Signed, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(signed) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"signed by alice; record {record.address(record.read(signed.path))}")
    assert signed.key.stat().st_mode & 0o777 == 0o600
    assert not list(signed.path.parent.glob("*.partial"))


def test_openssfs_verifier_accepts_an_elliptic_signature(tmp_path: Path) -> None:
    made = Signed(tmp_path, "ec")
    assert main(["keys", "signer", "alice", "--key", str(made.key), "--kind", "ec"]) == 0
    assert main(["sign", str(made.path), "--key", str(made.key)]) == 0
    public = tmp_path / "public.pem"
    public.write_bytes(
        read_private(made.key).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    verifier = model_signing.verifying.Config()
    verifier.use_elliptic_key_verifier(public_key=public)
    verifier.verify(made.path, made.path / record.SIGNATURE)
    (made.path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json"):
        verifier.verify(made.path, made.path / record.SIGNATURE)


def change(path: Path) -> None:
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "model.safetensors").write_bytes(content)


def swap(path: Path) -> None:
    shutil.move(path / "config.json", path / "x")
    shutil.move(path / "tokenizer_config.json", path / "config.json")
    shutil.move(path / "x", path / "tokenizer_config.json")


def forge(path: Path) -> None:
    """Weights exchanged, and the record made to fit them: only the signature can tell."""
    change(path)
    lineage = record.read(path)
    files = lineage.files | {"model.safetensors": record.digest_of(path / "model.safetensors")}
    forged = msgspec.structs.replace(lineage, files=files, steps=())
    (path / record.FILE).write_bytes(record.encoded(forged))
    record.verify(path, forged)


def forge_record(path: Path) -> None:
    lineage = record.read(path)
    forged = msgspec.structs.replace(lineage, base=msgspec.structs.replace(lineage.base, license="mit"))
    (path / record.FILE).write_bytes(record.encoded(forged))


def resign(path: Path) -> None:
    """The statement exchanged under the old signature."""
    bundle = json.loads((path / record.SIGNATURE).read_bytes())
    other = path.with_name("other")
    make(other, 2.0)
    assert main(["keys", "signer", "eve", "--key", str(path.with_name("eve.pem")), "--kind", "ed25519"]) == 0
    assert main(["sign", str(other), "--key", str(path.with_name("eve.pem"))]) == 0
    fresh = json.loads((other / record.SIGNATURE).read_bytes())
    bundle["dsseEnvelope"]["payload"] = fresh["dsseEnvelope"]["payload"]
    (path / record.SIGNATURE).write_text(json.dumps(bundle))


@pytest.mark.parametrize(
    ("tamper", "sentence"),
    [
        (change, "model.safetensors was changed or swapped after alice signed"),
        (swap, "config.json was changed or swapped after alice signed"),
        (forge, "lineage.json was changed or swapped after alice signed"),
        (forge_record, "lineage.json was changed or swapped after alice signed"),
        (
            lambda path: (path / "chat_template.jinja").write_text("x"),
            "chat_template.jinja was added after alice signed",
        ),
        (lambda path: (path / "tokenizer.json").unlink(), "tokenizer.json is missing, which alice signed"),
        (lambda path: (path / "model.sig").unlink(), "model.sig is missing: the artifact is not signed"),
        (lambda path: (path / "model.sig").write_text("{}"), "model.sig is not a signature"),
        (resign, "model.sig was changed: it names the key of alice, who did not sign this"),
    ],
)
def test_every_tampering_is_refused_naming_the_file(
    signed: Signed, tamper: Callable[[Path], object], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tamper(signed.path)
    capsys.readouterr()
    assert verify(signed) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err
    assert (printed.out, printed.err.count("\n")) == ("", 1)


def test_an_unknown_signer_is_refused(signed: Signed, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keys", "signer", "eve", "--key", str(tmp_path / "eve.pem"), "--kind", signed.kind]) == 0
    assert main(["sign", str(signed.path), "--key", str(tmp_path / "eve.pem")]) == 0
    assert verify(signed) == 2
    assert "model.sig is signed with the key" in (error := capsys.readouterr().err)
    assert f"which no line of {signed.signers} has" in error


def test_a_signed_artifact_with_weights_that_no_step_made_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files and record agree, but the chain does not end in these weights: nobody shall sign that, or add it."""
    made = Signed(tmp_path, "ed25519")
    lineage = record.read(made.path)
    wrong = msgspec.structs.replace(lineage.steps[0], digest="f" * 64)
    (made.path / record.FILE).write_bytes(record.encoded(msgspec.structs.replace(lineage, steps=(wrong,))))
    assert main(["lineage", str(made.path)]) == 1
    assert "NOT VERIFIED" in (out := capsys.readouterr().out)
    refusal = "model.safetensors does not hold what the last step of lineage.json made (wanda)"
    assert refusal in out
    assert main(["keys", "signer", "alice", "--key", str(made.key), "--kind", made.kind]) == 0
    assert main(["sign", str(made.path), "--key", str(made.key)]) == 2
    assert refusal in capsys.readouterr().err
    assert not (made.path / record.SIGNATURE).exists()
    assert main(["registry", "--registry", str(tmp_path / "r.sqlite3"), "add", "tiny", str(made.path)]) == 2
    assert refusal in capsys.readouterr().err
    assert not (tmp_path / "r.sqlite3").exists()


def test_a_changed_artifact_is_not_signed(signed: Signed, capsys: pytest.CaptureFixture[str]) -> None:
    before = (signed.path / record.SIGNATURE).read_bytes()
    (signed.path / "config.json").write_text("{}")
    assert main(["sign", str(signed.path), "--key", str(signed.key)]) == 2
    assert "config.json was changed" in capsys.readouterr().err
    assert (signed.path / record.SIGNATURE).read_bytes() == before


@pytest.mark.parametrize(
    ("signers", "sentence"),
    [
        (None, "signers cannot be read"),
        ("# nobody", "names no signer"),
        ("alice", "line 1: not `NAME KEY`"),
        ("\nalice AAAA", "line 2: not `NAME KEY`"),
        (
            f"{LINE} roles=sign,judge",
            "line 1: 'roles=sign,judge' is not `roles=` and some of sign,evaluate,",
        ),
        (f"{LINE} sign", "line 1: 'sign' is not `roles=`"),
        (f"{LINE} roles=approve,promote", "is signed by alice, whose line of"),
        (f"{LINE}\nseparate = yes", "line 2: write `separate = true` or `separate = false`"),
    ],
)
def test_a_signers_file_that_does_not_serve_is_refused_in_one_sentence(
    signed: Signed, signers: str | None, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    line = signed.signers.read_text().splitlines()[1].split("#")[0].strip()
    signed.signers.unlink()
    if signers is not None:
        signed.signers.write_text(signers.replace(LINE, line))
    assert verify(signed) == 2
    assert sentence in capsys.readouterr().err


def test_a_signers_line_can_name_roles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key = str(tmp_path / "bob.pem")
    assert main(["keys", "signer", "bob", "--key", key, "--role", "promote", "--role", "sign"]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.endswith(" roles=promote,sign")
    (tmp_path / "signers").write_text(f"separate = true\n{line}")
    found = Signers.read(tmp_path / "signers")
    assert found.separate
    assert found.signers[0].roles == ("sign", "promote")


def test_keys_are_never_replaced_and_wrong_ones_refused(
    signed: Signed, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signed.key.read_bytes()
    assert main(["keys", "signer", "alice", "--key", str(signed.key)]) == 2
    assert "a key is never replaced" in capsys.readouterr().err
    assert signed.key.read_bytes() == before
    (tmp_path / "no.pem").write_text("no")
    assert main(["sign", str(signed.path), "--key", str(tmp_path / "no.pem")]) == 2
    assert "no.pem is not a private key in PEM" in capsys.readouterr().err


def test_without_the_extra_an_elliptic_key_says_what_to_do(
    signed: Signed, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(openssf, "installed", lambda: False)
    assert verify(signed) == 0
    assert main(["sign", str(signed.path), "--key", str(signed.key)]) == (2 if signed.kind == "ec" else 0)
    assert ("pip install 'secateur[signing]'" in capsys.readouterr().err) == (signed.kind == "ec")
