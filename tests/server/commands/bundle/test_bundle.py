"""Bundles: what they hold and refuse, and what the install script refuses; `make exam-bundle` installs a real one."""

import hashlib
import json
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from server.commands.__main__ import main
from server.commands.bundle import contents, wheels
from server.config import load
from server.errors import ConfigError
from server.models.reload import open_revisions
from tests.support.tiny_llama import tiny_llama

WHEEL = "secateur-0.1.0-py3-none-any.whl"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Settings of a server with two skills, keys and a webhook; wheels are not gathered, but one is there."""
    monkeypatch.chdir(tmp_path)
    tiny_llama(tmp_path / "tiny")
    skills = tmp_path / "skills"
    skills.mkdir()
    (skills / "help.toml").write_text('name = "help"\norigins = ["https://www.example"]\n')
    (skills / "other.toml").write_text('name = "other"\nmodel = "tiny"  # the same\nsystem_file = "prompt.txt"\n')
    (skills / "prompt.txt").write_text("Be brief.")
    keys = ("keys", "create", "--file", "keys.json")
    assert main([*keys, "--skill", "help", "--note", "shop's page", "--tokens-per-day", "500", "--group", "staff"]) == 0
    assert main([*keys, "--skill", "other"]) == 0
    gone = load_keys(tmp_path / "keys.json")[1]
    assert main(["keys", "revoke", "keys.json", gone[:12]]) == 0
    file = tmp_path / "server.toml"
    file.write_text(
        'model = "tiny"\nskills = "skills"\nledger = "usage.sqlite3"\nkeys = "keys.json"\nslots = 3\n'
        'webhook = "https://billing.example/in"\ntrusted_proxies = ["127.0.0.1"]\n'
    )
    (tmp_path / WHEEL).write_bytes(b"wheel")

    def gather(folder: Path, wheel: Path, extras: Sequence[str]) -> None:
        folder.mkdir()
        (folder / wheel.name).write_bytes(wheel.read_bytes())

    monkeypatch.setattr(wheels, "gather", gather)
    return file


def load_keys(file: Path) -> list[str]:
    return [key["digest"] for key in json.loads(file.read_text())["keys"]]


def bundled(server: Path) -> Path:
    out = server.parent / "out"
    assert main(["bundle", str(server), "--wheel", WHEEL, "--output", str(out)]) == 0
    return out


def install(out: Path, prefix: Path, python: str = sys.executable) -> tuple[int, str]:
    ended = subprocess.run(
        ["sh", str(out / "install.sh"), str(prefix)], env={"PATH": "/usr/bin:/bin", "PYTHON": python},
        capture_output=True, text=True,
    )  # fmt: skip
    return ended.returncode, ended.stderr


def test_a_bundle_holds_the_server_and_no_key(server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    out = bundled(server)
    said = capsys.readouterr().out
    assert "left out: `webhook`" in said
    sums = (out / "SHA256SUMS").read_bytes()
    assert hashlib.sha256(sums).hexdigest() in said
    lines = [line.split("  ") for line in sums.decode().splitlines()]
    listed = {name: digest for digest, name in lines}
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files - set(listed) == {"SHA256SUMS"}
    for name, digest in listed.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    given = tomllib.loads((out / "etc/server.toml").read_text())
    assert given == {
        "model": "@PREFIX@/models/tiny", "skills": "@PREFIX@/etc/skills", "ledger": "@PREFIX@/var/usage.sqlite3",
        "keys": "@PREFIX@/etc/keys.json", "slots": 3, "trusted_proxies": ["127.0.0.1"],
    }  # fmt: skip
    assert '"@PREFIX@/models/tiny"  # the same' in (out / "etc/skills/other.toml").read_text()
    assert (out / "etc/skills/prompt.txt").read_text() == "Be brief."
    assert (out / "models/tiny/model.safetensors").read_bytes() == Path("tiny/model.safetensors").read_bytes()
    everything = b"".join((out / name).read_bytes() for name in listed)
    assert not [digest for digest in load_keys(Path("keys.json")) if digest.encode() in everything]


def test_keys_are_made_anew_with_the_rights_of_the_old(server: Path, tmp_path: Path) -> None:
    out = bundled(server)
    called = tmp_path / "secateur"
    called.write_text(f'#!/bin/sh\nprintf "%s|" "$@" >> {tmp_path}/called\n')
    called.chmod(0o755)
    run = f"secateur={called} etc=/etc/x; . {out}/keys.sh"
    subprocess.run(["sh", "-c", run], check=True)
    wanted = "keys|create|--file|/etc/x/keys.json|--skill|help|--group|staff|--note|shop's page|--tokens-per-day|500|"
    assert (tmp_path / "called").read_text() == wanted


def test_a_file_beside_the_model_is_refused(server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (Path("tiny") / "pytorch_model.bin").write_bytes(b"code")
    assert main(["bundle", str(server), "--wheel", WHEEL, "--output", "out"]) == 2
    assert "pytorch_model.bin is not named in lineage.json; remove it" in capsys.readouterr().err
    assert not [path.name for path in Path().iterdir() if path.name.startswith("out")]


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "tokenizer.pkl", "modeling_tiny.py"])
def test_what_may_hold_code_is_refused_whatever_the_record_says(tmp_path: Path, name: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / name).write_bytes(b"code")
    with pytest.raises(ConfigError, match=f"{name} is no file of a model in safetensors"):
        contents.Copies(tmp_path / "out").add("model", tmp_path / "model", contents.MODEL_FILES)


def test_a_damaged_model_and_a_used_folder_are_refused(server: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = Path("tiny/model.safetensors")
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-2] + bytes([whole[-2] ^ 1, whole[-1]]))
    assert main(["bundle", str(server), "--wheel", WHEEL, "--output", "out"]) == 2
    assert "its SHA-256 is not the one that lineage.json records" in capsys.readouterr().err
    weights.write_bytes(whole)
    Path("out").mkdir()
    assert main(["bundle", str(server), "--wheel", WHEEL, "--output", "out"]) == 2
    assert "out exists already: name a new directory" in capsys.readouterr().err


def test_the_wheel_of_another_version_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "secateur-9.9.9-py3-none-any.whl"
    other.write_bytes(b"")
    with pytest.raises(Exception, match=r"secateur-9.9.9.*is not the wheel of secateur .*: `make wheel` builds it"):
        wheels.gather(tmp_path / "wheels", other, [])


@pytest.mark.parametrize("change", ["altered", "missing", "added", "linked"])
def test_a_changed_bundle_is_not_installed(server: Path, tmp_path: Path, change: str) -> None:
    out, prefix = bundled(server), tmp_path / "prefix"
    weights = out / "models/tiny/model.safetensors"
    if change == "altered":
        weights.write_bytes(weights.read_bytes() + b"x")
    elif change == "missing":
        weights.unlink()
    elif change == "added":
        (out / "wheels/extra-1.0-py3-none-any.whl").write_bytes(b"")
    else:
        (out / "models/tiny/link.json").symlink_to("/etc/hostname")
    code, errors = install(out, prefix)
    assert (code, prefix.exists()) == (2, False)
    assert errors.strip().endswith("copy the bundle again; nothing was installed"), errors


def test_another_python_and_a_used_folder_are_refused(server: Path, tmp_path: Path) -> None:
    out = bundled(server)
    other = tmp_path / "python3.99"
    other.write_text("#!/bin/sh\necho 3.99\n")
    other.chmod(0o755)
    code, errors = install(out, tmp_path / "prefix", str(other))
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert (code, errors) == (2, f"install: the bundle is for Python {version} and {other} is 3.99: set PYTHON\n")
    (tmp_path / "used").mkdir()
    code, errors = install(out, tmp_path / "used")
    assert (code, errors) == (2, f"install: {tmp_path}/used exists: name a new folder\n")


def test_the_installed_settings_are_read(server: Path, tmp_path: Path) -> None:
    """What the script does with @PREFIX@."""
    out = bundled(server)
    text = (out / "etc/server.toml").read_text().replace("@PREFIX@", str(tmp_path / "prefix"))
    (tmp_path / "installed.toml").write_text(text)
    settings = load(tmp_path / "installed.toml")
    assert settings.model == f"{tmp_path}/prefix/models/tiny"


def test_rivals_go_along_with_their_models(server: Path, tmp_path: Path) -> None:
    tiny_llama(tmp_path / "second")
    (tmp_path / "skills/rivals").mkdir()
    (tmp_path / "skills/rivals/help.toml").write_text(
        'name = "help"\norigins = ["https://www.example"]\nmodel = "second"\nsystem = "Be very brief."\n'
    )
    with (tmp_path / "skills/help.toml").open("a") as file:
        file.write('[experiment]\nfile = "rivals/help.toml"\n')
    (tmp_path / "keys.json").unlink()
    out = bundled(server)
    assert '"@PREFIX@/models/second"' in (out / "etc/skills/rivals/help.toml").read_text()
    assert (out / "models/second/model.safetensors").exists()
    assert "--skill help --skill other" in (out / "keys.sh").read_text()


def test_the_rival_and_prompt_of_one_file_go_along(server: Path, tmp_path: Path) -> None:
    (tmp_path / "skills/rivals").mkdir()
    rival = tmp_path / "skills/rivals/other.toml"
    rival.write_text('name = "other"\nsystem_file = "rival.txt"\n')
    (tmp_path / "skills/rivals/rival.txt").write_text("Be very brief.")
    with (tmp_path / "skills/other.toml").open("a") as file:
        file.write('[experiment]\nfile = "rivals/other.toml"\n')
    server.write_text(server.read_text().replace('skills = "skills"', 'skills = "skills/other.toml"'))
    skills = bundled(server) / "etc/skills"
    files = {str(path.relative_to(skills)) for path in skills.rglob("*") if path.is_file()}
    assert files == {"other.toml", "prompt.txt", "rivals/other.toml", "rivals/rival.txt"}


def test_a_text_that_is_no_skill_is_left_as_it_is(server: Path, tmp_path: Path) -> None:
    (tmp_path / "skills/old").mkdir()
    draft = 'name = "help"\nmodel = "gone"\nknowledge = ["a"]\n'
    (tmp_path / "skills/old/help.toml").write_text(draft)
    (tmp_path / "skills/.#help.toml").symlink_to("somebody@somewhere")  # an editor's lock
    skills = bundled(server) / "etc/skills"
    assert (skills / "old/help.toml").read_text() == draft
    assert not list(skills.glob(".*"))
    (tmp_path / "skills/old/help.toml").write_text("name = ")
    with pytest.raises(ConfigError, match=r"old/help.toml is not TOML"):
        contents.write(tmp_path / "x", server, load(server))


def test_uploads_of_the_page_stay_here_but_what_a_skill_names(server: Path, tmp_path: Path) -> None:
    uploads = tmp_path / "skills/knowledge/help"
    for name in ("documents", "built-1"):
        (uploads / name).mkdir(parents=True)
        (uploads / name / "secret.md").write_text("secret")
    (uploads / "knowledge.toml").write_text('name = "help"\n')
    (tmp_path / "skills/knowledge/prompt.txt").write_text("Be kind.")
    (tmp_path / "skills/help.toml").write_text('name = "help"\nsystem_file = "knowledge/prompt.txt"\n')
    skills = bundled(server) / "etc/skills"
    files = {str(path.relative_to(skills)) for path in skills.rglob("*") if path.is_file()}
    assert files == {"help.toml", "other.toml", "prompt.txt", "knowledge/prompt.txt"}


def test_published_revisions_are_refused_until_they_are_files(
    server: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with server.open("a") as file:
        file.write('skill_revisions = "edit"\nprefix_cache = "prefixes"\n')
    out = bundled(server)
    assert not (tmp_path / "skills.sqlite3").exists()
    assert "prefix_cache" not in (out / "etc/server.toml").read_text()
    with closing(open_revisions(load(server))) as revisions:
        revisions.save("help", 'name = "help"\nsystem = "New."\n', author="ann", reason="")
        revisions.publish("help", 1, author="ann", reason="")
    assert main(["bundle", str(server), "--wheel", WHEEL, "--output", "again"]) == 2
    error = capsys.readouterr().err
    assert "`secateur skills export skills --server" in error
    assert 'skill_revisions = "off"' in error
    assert "help" in error
    with closing(open_revisions(load(server))) as revisions:
        revisions.withdraw("help", author="ann", reason="")
    assert main(["bundle", str(server), "--wheel", WHEEL, "--output", "again"]) == 0
