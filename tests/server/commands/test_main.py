"""The console script, in its own processes."""

import argparse
import gc
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib import import_module
from itertools import takewhile
from pathlib import Path
from subprocess import PIPE
from urllib.request import urlopen

import msgspec
import pytest
from msgspec.structs import replace
from openai import OpenAI

from server.artifact.checkpoint.lineage import FILE, encoded, read
from server.commands import serve
from server.commands.__main__ import COMMANDS, main
from server.commands.serve import store_of
from server.config import Config
from server.metering.ledger.ledger import Ledger
from server.skills.api_keys import digest
from server.web.app import Apps
from server.web.running import Parts
from tests.conftest import ROOT
from tests.support.harness import KEY, LINEAGE, parts, says, until
from tests.support.tiny_llama import tiny_llama

pytestmark = pytest.mark.slow


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "server.commands", *words], capture_output=True, text=True, check=False
    )


def test_help_names_every_command_and_loads_no_library(capsys: pytest.CaptureFixture[str]) -> None:
    left = "sys.exit(bool({'torch', 'msgspec'} & sys.modules.keys()))"
    program = f"import sys, server.commands.__main__ as it; it.main(['--help']); {left}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^  (\w+)", done.stdout, re.MULTILINE) == list(COMMANDS)
    assert main([]) == 2
    assert "usage: secateur COMMAND" in capsys.readouterr().out


def test_an_unknown_command_is_one_sentence() -> None:
    for wrong, guess in (("prun", "did you mean `prune`? "), ("xyzzy", "")):
        done = run(wrong)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"secateur: there is no command '{wrong}'; {guess}there are {', '.join(COMMANDS)}\n"


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_that_of_pyproject(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([option]) == 0
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert capsys.readouterr().out == f"secateur {version}\n"


def test_a_closed_pipe_is_no_error(tmp_path: Path) -> None:
    Ledger(tmp_path / "usage.sqlite3").close()
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "server.commands", "usage", str(tmp_path / "usage.sqlite3"), "--format", "csv"]
    done = subprocess.run(command, stdout=write, stderr=PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main([command, "--help"])
    assert left.value.code == 0
    assert f"secateur {command}" in capsys.readouterr().out


@pytest.mark.parametrize("command", list(COMMANDS))
def test_every_option_has_help(command: str) -> None:
    top: argparse.ArgumentParser = import_module(COMMANDS[command].module).parser()
    assert top.prog == f"secateur {command}"
    assert top.description
    assert not [f"{parser.prog} {action.dest}" for parser, action in options(top) if not action.help]


def options(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, argparse.Action]]:
    """Every option and argument of a command and its subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from options(below)
        else:
            yield parser, action


def test_keys_create_prints_a_key_once_and_the_line_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    keys = set()
    for _ in range(2):
        assert main(["keys", "create"]) == 0
        printed = capsys.readouterr().out
        key = re.search(r"sk-[\w-]{43}", printed)
        assert key
        assert f'keys = ["{hashlib.sha256(key[0].encode()).hexdigest()}"]' in printed
        keys.add(key[0])
    assert len(keys) == 2


def test_serve_reports_a_mistake_in_one_sentence(tmp_path: Path) -> None:
    config, skill = tmp_path / "server.toml", tmp_path / "skill.toml"
    settings = f'model = "{tmp_path}/none"\nskills = "{skill}"\nledger = "{tmp_path}/usage.sqlite3"\n'
    skill.write_text('name = "help"')
    for text, message in (
        (
            "prot = 1",
            "server.toml: Object contains unknown field `prot` - at `$`; did you mean `port`? known",
        ),
        ("", f"{tmp_path}/none is not an artifact"),
    ):
        config.write_text(settings + text)
        done = run("serve", str(config))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("secateur serve: ")
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "usage.sqlite3").exists()


def test_serve_check_tries_the_files_and_the_ports_and_loads_nothing(tmp_path: Path) -> None:
    config, skill = tmp_path / "server.toml", tmp_path / "skill.toml"
    skill.write_text('name = "help"')
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        settings = f'model = "not/made/yet"\nskills = "{skill}"\nledger = "{tmp_path}/usage.sqlite3"\nadmin_port = 0\n'
        config.write_text(f"{settings}port = {taken}\n")
        done = run("serve", str(config), "--check")
        assert (done.returncode, done.stdout) == (2, "")
        missing, refusal = done.stderr.splitlines()
        assert "not/made/yet is not there (yet)" in missing
        assert refusal == f"secateur serve: cannot listen on 127.0.0.1:{taken}: Address already in use"
        config.write_text(f"{settings}port = 0\n")
        done = run("serve", str(config), "--check")
        said = "ok: settings, keys, models' files, 2 ports, and the skills help; no model was loaded\n"
        assert (done.returncode, done.stdout) == (0, said)
        assert "not/made/yet is not there (yet)" in done.stderr
    config.write_text(f'{settings}port = 0\nhost = "unknown.invalid"\ntrusted_proxies = ["0.0.0.0/0"]\n')
    done = run("serve", str(config), "--check")
    assert done.returncode == 2
    warning, _, refusal = done.stderr.splitlines()
    assert "`trusted_proxies` has 0.0.0.0/0" in warning
    assert refusal.startswith("secateur serve: cannot listen on unknown.invalid:0: ")
    assert not (tmp_path / "usage.sqlite3").exists()


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("memory://", "this process"),
        ("redis://127.0.0.1:6379/0", "redis://127.0.0.1:6379 (while it is away, requests that a limit holds for are "),
        ("rediss://me:hunter2@host/0?ssl_cert_reqs=none", "rediss://host (while it is away, "),
    ],
)
def test_the_store_of_rate_limits_is_shown_without_secrets(url: str, shown: str) -> None:
    config = Config(model="m", skills=Path("s"), ledger="l", rate_limits=url)
    assert store_of(config).startswith(shown)
    assert "hunter2" not in store_of(config)
    assert "this process alone" in store_of(replace(config, rate_limits="redis://host", rate_limits_fail="open"))


def test_the_collector_leaves_what_was_loaded_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async def frozen(_: Parts, __: Apps, bound: dict[str, socket.socket], *___: object) -> int:
        for one in bound.values():
            one.close()
        return gc.get_freeze_count()

    monkeypatch.setattr(serve, "serve", frozen)
    try:
        assert serve.run(parts(tmp_path, says(tmp_path, "a"))) > 100_000
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    "module",
    ["web.app", "web.listeners", "metering.meter", "skills.catalogue", "chat.reply", "text.tokenizer"],
)
def test_http_modules_load_no_torch(module: str) -> None:
    program = (
        f"import sys, server.{module}; sys.exit(bool({{'torch', 'transformers', 'pruning'}} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_llama(tmp_path_factory.mktemp("files") / "tiny")


def settings_for(artifact: Path, folder: Path) -> Path:
    (folder / "skill.toml").write_text(f'name = "help"\nkeys = ["{digest(KEY)}"]\nmax_tokens = 8')
    config = folder / "server.toml"
    config.write_text(
        f'model = "{artifact}"\nskills = "{folder}/skill.toml"\nledger = "{folder}/usage.sqlite3"\n'
        "port = 0\nadmin_port = 0\npage_port = 0\ncontext = 256\nslots = 2\n"
    )
    return config


def test_serve_opens_an_artifact_says_what_it_chose_and_answers(artifact: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "server.commands", "serve", str(settings_for(artifact, tmp_path))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            lines = list(takewhile(lambda line: "Ctrl-C" not in line, server.stdout))
            url = next(line.split()[1] for line in lines if line.startswith("API"))
            page = next(line.split()[1] for line in lines if line.startswith("page"))
            with urlopen(page) as answer:
                html = answer.read().decode()
            with OpenAI(base_url=url, api_key=KEY) as client:
                model = client.models.retrieve("help").model_dump()
                reply = client.chat.completions.create(model="help", messages=[{"role": "user", "content": "hi"}])
            server.terminate()
            assert server.wait(120) == 0
        finally:
            server.kill()
    assert f'src="{url.removesuffix("/v1")}/widget.js"' in html  # the bound port, though 0 was requested
    assert reply.usage
    assert 1 <= reply.usage.completion_tokens <= 8
    assert model["artifact"] == "tiny"
    for choice in model["runtime"]:
        assert f"  {choice['subject']}: {choice['kernel']} ({choice['reason']})\n" in lines


def artifact_behind(client: OpenAI) -> str:
    return str(client.models.retrieve("help").model_dump()["artifact"])


def test_a_promotion_and_a_rollback_reach_a_server_in_a_process_of_its_own(
    artifact: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = ["registry", "--registry", str(tmp_path / "registry.sqlite3")]
    key, signers = str(tmp_path / "alice.pem"), tmp_path / "signers"
    assert main(["keys", "signer", "alice", "--key", key, "--kind", "ed25519"]) == 0
    signers.write_text(capsys.readouterr().out.splitlines()[-1])
    for number in (1, 2):
        made = shutil.copytree(artifact, tmp_path / f"model-{number}")
        lineage = msgspec.structs.replace(LINEAGE, created=str(number), steps=(), files=read(made).files)
        (made / FILE).write_bytes(encoded(lineage))
        assert main(["sign", str(made), "--key", key]) == 0
        assert main([*registry, "add", "tiny", str(made)]) == 0
        approve = ["approve", f"tiny@{number}", "--key", key, "--reason", "a test", "--override"]
        assert main([*registry, *approve]) == 0
    promote = [*registry, "promote", "--signers", str(signers), "--key", key]
    assert main([*promote, "tiny@1"]) == 0
    config = settings_for(Path("registry:tiny@production"), tmp_path)
    more = f'registry = "{tmp_path}/registry.sqlite3"\nsigners = "{signers}"\nregistry_seconds = 0.1\n'
    config.write_text(config.read_text() + more)
    with subprocess.Popen(
        [sys.executable, "-m", "server.commands", "serve", str(config)], stdout=PIPE, text=True
    ) as server:
        try:
            assert server.stdout
            lines = list(takewhile(lambda line: "Ctrl-C" not in line, server.stdout))
            url = next(line.split()[1] for line in lines if line.startswith("API"))
            with OpenAI(base_url=url, api_key=KEY) as client:
                assert artifact_behind(client) == "tiny@1"
                assert main([*promote, "tiny@2"]) == 0
                until(lambda: artifact_behind(client) == "tiny@2")
                assert main([*registry, "rollback", "tiny", "--signers", str(signers), "--key", key]) == 0
                until(lambda: artifact_behind(client) == "tiny@1")
                reply = client.chat.completions.create(model="help", messages=[{"role": "user", "content": "hi"}])
            server.terminate()
            assert server.wait(120) == 0
        finally:
            server.kill()
    assert reply.usage
    assert reply.usage.completion_tokens >= 1


def test_serve_refuses_a_modified_artifact(artifact: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(artifact, tmp_path / "changed")
    with (changed / "tokenizer_config.json").open("a") as file:
        file.write(" ")
    done = run("serve", str(settings_for(changed, tmp_path)))
    assert (done.returncode, done.stdout) == (2, "")
    assert "tokenizer_config.json was changed" in done.stderr
    assert done.stderr.count("\n") == 1
