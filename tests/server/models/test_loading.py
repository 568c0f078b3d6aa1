"""Skills with models of their own: two real models in one server, and reloads and promotions while replies run."""

import http.client
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import pytest
from openai import OpenAI

from server.artifact.registry.store import Registry
from server.commands.ledger.usage import main as ledger_command
from server.engine.engine import Engine
from server.errors import ConfigError
from server.models.follow import Follower
from server.models.loading import Loader, Opened, check_names, structured_output
from server.models.rollout import CurrentModel, Model, Rollout
from server.skills.api_keys import digest
from server.skills.catalogue import Skills
from server.text.tokenizer import Tokenizer
from tests.server.models.test_follow import House
from tests.support.chat_client import STREAM, get, received, send
from tests.support.fakes import ScriptRunner
from tests.support.harness import HELP, KEY, LINEAGE, Served, ledger_of, parts, rows, says, served, tokenizer, until
from tests.support.tiny_llama import tiny_llama

pytestmark = pytest.mark.slow

ASK: Any = [{"role": "user", "content": "hi"}]


class Running(NamedTuple):
    process: "subprocess.Popen[str]"
    url: str
    admin: str
    lines: list[str]


@contextmanager
def running(folder: Path, model: Path) -> Iterator[Running]:
    """`secateur serve` in a process of its own, with the skills in the folder."""
    config = folder / "server.toml"
    config.write_text(
        f'model = "{model}"\nskills = "{folder}/skills"\nledger = "{folder}/usage.sqlite3"\n'
        "port = 0\nadmin_port = 0\ncontext = 256\nslots = 2\n"
    )
    command = [sys.executable, "-m", "server.commands", "serve", str(config)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            assert process.stdout
            lines = list(takewhile(lambda line: "Ctrl-C" not in line, process.stdout))
            found = {line.split()[0]: line.split()[1] for line in lines if len(line.split()) == 2}
            yield Running(process, found["API"], found["metrics"].removesuffix("/metrics"), lines)
            process.terminate()
            assert process.wait(120) == 0
        finally:
            process.kill()


def skill(folder: Path, name: str, model: Path | None = None) -> None:
    (folder / "skills").mkdir(exist_ok=True)
    named = f'model = "{model}"\n' if model else ""
    text = f'name = "{name}"\n{named}keys = ["{digest(KEY)}"]\nmax_tokens = 12\ntemperature = 0\n'
    (folder / "skills" / f"{name}.toml").write_text(text)


def said(client: OpenAI, name: str) -> str:
    return client.chat.completions.create(model=name, messages=ASK).choices[0].message.content or ""


def artifacts(client: OpenAI) -> dict[str, str]:
    return {model.id: model.model_dump()["artifact"] for model in client.models.list()}


def alone(folder: Path, model: Path) -> str:
    """The reply of a server with this model alone."""
    folder.mkdir()
    skill(folder, "help")
    with running(folder, model) as server, OpenAI(base_url=server.url, api_key=KEY) as client:
        return said(client, "help")


def test_two_real_models_in_one_server_with_openais_client(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each replies as it does alone; ledger, metrics and /v1/models name the one that answered."""
    one, two, three = (tiny_llama(tmp_path / name, seed) for seed, name in enumerate(("one", "two", "three")))
    skill(tmp_path, "first")
    skill(tmp_path, "second", two)
    skill(tmp_path, "third", two)
    with running(tmp_path, one) as server, OpenAI(base_url=server.url, api_key=KEY) as client:
        assert [line for line in server.lines if ": skills" in line] == [
            "one: skills first\n",
            "two: skills second, third\n",
        ]
        assert artifacts(client) == {"first": "one", "second": "two", "third": "two"}
        texts = {name: said(client, name) for name in ("first", "second", "third")}
        assert get(server.admin, "/readyz") == (200, {"status": "ready"})
        assert gauges(server) == {"one", "two"}

        skill(tmp_path, "third", three)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: artifacts(client)["third"] == "three")
        skill(tmp_path, "second", three)
        assert client.post(f"{server.admin}/admin/reload", cast_to=object)
        assert artifacts(client) == {"first": "one", "second": "three", "third": "three"}
        until(lambda: gauges(server) == {"one", "three"})
        reloaded = said(client, "second")
    assert texts["second"] == texts["third"] == alone(tmp_path / "two-alone", two)
    assert texts["first"] == alone(tmp_path / "one-alone", one)
    assert reloaded == alone(tmp_path / "three-alone", three)
    assert len({texts["first"], texts["second"], reloaded}) == 3
    names = [("first", "one"), ("second", "two"), ("third", "two"), ("second", "three")]
    assert [(row["skill"], row["model"]) for row in rows(tmp_path / "usage.sqlite3")] == names
    assert ledger_command([str(tmp_path / "server.toml"), "--by", "skill,model", "--format", "csv"]) == 0
    printed = capsys.readouterr().out.splitlines()[1:]
    assert [tuple(line.split(",")[:3]) for line in printed] == [
        ("first", "one", "1"), ("second", "three", "1"), ("second", "two", "1"), ("third", "two", "1"),
    ]  # fmt: skip


def scrape(admin: str) -> str:
    with urllib.request.urlopen(f"{admin}/metrics", timeout=120) as answer:
        text: str = answer.read().decode()
    return text


def gauges(server: Running) -> set[str]:
    """The models whose engines run."""
    return set(re.findall(r'^secateur_requests_running\{model="(\w+)"\}', scrape(server.admin), re.MULTILINE))


class Scripts(Loader):
    """A fake loader: a model repeats the first letter of its name; one called `broken` fails."""

    def __init__(self, folder: Path, config: Any) -> None:
        super().__init__(config)
        self.folder = folder
        self.engines: dict[str, Engine] = {}
        self.runners: dict[str, ScriptRunner] = {}

    def open(self, reference: str) -> Opened:
        return Opened(reference, None, tokenizer(self.folder / "tiny"))  # type: ignore[arg-type]

    def load(self, opened: Opened) -> CurrentModel:
        if opened.name == "broken":
            raise RuntimeError("its weights are")
        return CurrentModel(self.model(opened.name, opened.tokenizer))

    def model(self, name: str, words: Tokenizer) -> Model:
        script = [*words.encode(name[0] * 40), next(iter(words.stop_ids))]
        runner = self.runners[name] = ScriptRunner(script, words.vocabulary)
        engine = self.engines[name] = Engine(runner, slots=2, context=512)
        return Model(name, engine, words, LINEAGE)


@contextmanager
def scripted(folder: Path, models: dict[str, str], **more: CurrentModel) -> Iterator[tuple[Served, Scripts]]:
    """A server whose skills have these models, read from a folder of files."""
    for name, model in models.items():
        write(folder, name, model)
    made = parts(folder, says(folder, "unused"), registry_seconds=0.05, registry=str(folder / "registry.sqlite3"))
    signers = folder / "signers" if (folder / "signers").exists() else None
    config = msgspec.structs.replace(made.config, skills=folder / "skills", signers=signers)
    made = msgspec.structs.replace(made, config=config)
    loader = Scripts(folder, made.config)
    answering = {
        model: loader.load(loader.open(model)) for model in dict.fromkeys(models.values()) if model not in more
    }
    rollout = Rollout({**answering, **more}, next(iter(models.values())))
    skills = Skills(msgspec.structs.replace(HELP, name=name, model=model) for name, model in models.items())
    made = msgspec.structs.replace(made, rollout=rollout, loader=loader, skills=skills)
    with served(made, ScriptRunner([0], 258)) as server:
        yield server, loader


def write(folder: Path, name: str, model: str) -> None:
    (folder / "skills").mkdir(exist_ok=True)
    (folder / "skills" / f"{name}.toml").write_text(f'name = "{name}"\nmodel = "{model}"\nkeys = ["{digest(KEY)}"]')


def post(url: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=120)
    connection.request("POST", path)
    answer = connection.getresponse().read()
    connection.close()
    return answer


def test_a_reload_that_removes_a_model_cuts_none_of_its_streams(tmp_path: Path) -> None:
    with scripted(tmp_path, {"help": "apple", "other": "berry"}) as (server, loader):
        loader.runners["berry"].hold(2)
        streams = [send(server.url, {**STREAM, "model": name}) for name in ("help", "other")]
        until(lambda: loader.engines["berry"].running == 1)
        write(tmp_path, "other", "cherry")
        assert b'"other"' in post(server.admin, "/admin/reload")
        assert loader.engines["berry"].running == 1
        loader.runners["berry"].release()
        after = send(server.url, {**STREAM, "model": "other"})
        assert [received(stream)[0] for stream in (*streams, after)] == ["a" * 40, "b" * 40, "c" * 40]
        until(lambda: loader.engines["berry"].failure == "The engine was stopped.")
        until(lambda: all(row["state"] == "final" for row in ledger_of(server)))
        assert get(server.admin, "/readyz")[0] == 200
        assert sorted((row["skill"], row["model"]) for row in ledger_of(server)) == [
            ("help", "apple"), ("other", "berry"), ("other", "cherry"),
        ]  # fmt: skip
        text = scrape(server.admin)
        for skill_name, model in (("help", "apple"), ("other", "berry"), ("other", "cherry")):
            labels = f'model="{model}",skill="{skill_name}",type="output"'
            assert f"secateur_tokens_total{{{labels}}} 41.0" in text
        assert 'model="berry",skill="help"' not in text


def test_a_model_that_cannot_be_loaded_changes_nothing(tmp_path: Path) -> None:
    with scripted(tmp_path, {"help": "apple"}) as (server, loader):
        write(tmp_path, "second", "berry")
        write(tmp_path, "third", "broken")
        assert b'"error"' in post(server.admin, "/admin/reload")
        assert server.parts.skills.names == ("help",)
        assert [model.name for model in server.parts.rollout.models] == ["apple"]
        assert received(send(server.url, STREAM))[0] == "a" * 40
        (tmp_path / "skills" / "third.toml").unlink()
        assert b'"second"' in post(server.admin, "/admin/reload")
        assert received(send(server.url, {**STREAM, "model": "second"}))[0] == "b" * 40
        loader.engines["berry"].stop()
        assert get(server.admin, "/readyz")[0] == 503


def test_a_promotion_moves_only_the_skills_of_that_model_and_cuts_no_stream(tmp_path: Path) -> None:
    house = House(tmp_path)
    follower = Follower.open(house.reference(), house.load)
    first = follower.version
    followed = CurrentModel(house.load(first.path, first.name), follower)
    models = {"help": "apple", "other": "registry:tiny@production"}
    with scripted(tmp_path, models, **{"registry:tiny@production": followed}) as (server, loader):
        house.runners["tiny@1"].hold(2)
        streams = [send(server.url, {**STREAM, "model": name}) for name in ("help", "other")]
        until(lambda: house.engines["tiny@1"].running == 1)
        house("promote", "tiny@2", "--signers", str(house.signers))
        until(lambda: server.parts.rollout.of("registry:tiny@production").name == "tiny@2")
        assert house.engines["tiny@1"].running == 1
        house.runners["tiny@1"].release()
        streams += [send(server.url, {**STREAM, "model": name}) for name in ("help", "other")]
        assert [received(stream)[0] for stream in streams] == ["a" * 40, "1" * 40, "a" * 40, "2" * 40]
        assert loader.engines["apple"].failure is None
        with Registry.open(house.url) as registry:
            assert {name: found[0] for name, found in registry.bindings("tiny").items()} == {"other": 2}
        shown = get(server.admin, "/admin/registry")[1]
        assert [(one["model"], one["skills"]) for one in shown["answering"]] == [
            ("apple", ["help"]),
            ("tiny@2", ["other"]),
        ]
        assert [(one["name"], one["aliases"]) for one in shown["versions"]] == [
            ("tiny@1", []),
            ("tiny@2", ["candidate", "production"]),
        ]
        assert shown["answering"][1]["address"] == shown["versions"][1]["address"]
        [result] = shown["versions"][0]["results"]
        assert result == {
            "task": "faq",
            "passed": True,
            "source": "lineage",
            "valid": True,
            "signer": "alice",
            "problem": "",
        }


def test_two_directories_of_one_name_are_refused_and_two_aliases_are_not() -> None:
    with pytest.raises(ConfigError, match="'a/tiny' and 'b/tiny' would both be called 'tiny' in metrics"):
        check_names({"a/tiny": "tiny", "b/tiny": "tiny"})
    check_names({"registry:tiny@candidate": "tiny@2", "registry:tiny@production": "tiny@2", "a/tiny": "tiny"})


def test_a_skill_can_name_the_registry_only_with_signers(tmp_path: Path) -> None:
    write(tmp_path, "help", "registry:tiny@production")
    made = parts(tmp_path, says(tmp_path, "unused"))
    made = msgspec.structs.replace(made, config=msgspec.structs.replace(made.config, skills=tmp_path / "skills"))
    with served(made, ScriptRunner([0], 258)) as server:
        assert b"name the file of `signers`" in post(server.admin, "/admin/reload")


def test_structured_output_is_on_for_a_known_tokenizer_and_off_with_the_reason_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = tokenizer(tmp_path)
    assert structured_output(words).value == "on"
    monkeypatch.setattr(words.grammars, "unsupported", lambda: "it has no tokens")
    choice = structured_output(words)
    assert choice.value == "off"
    assert choice.reason.endswith("it has no tokens")
