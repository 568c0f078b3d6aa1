"""Models on other machines: their files, and their replies over HTTP with exact ledger rows."""

import json
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from openai import APIStatusError, OpenAI

from server.engine.remote.backends import Backends
from server.engine.remote.http_stream import Target
from server.engine.remote.remote_engine import RemoteEngine, Sizes
from server.errors import ArtifactError, ConfigError
from server.models.loading import Loader
from server.models.remote import read_remote, remote_engine
from server.models.rollout import CurrentModel, Model, Rollout
from tests.exams.servers.vllm_server import VllmServer, running
from tests.support.harness import KEY, LINEAGE, Served, ledger_of, parts, says, served, until

GOOD = 'engine = "remote"\nartifact = "a"\nbackends = ["https://one.example:8000"]\nserved_as = "mine"\n'


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (GOOD.replace("https://one.example:8000", "one.example"), r"a backend is an address.*backends\[0\]"),
        (GOOD.replace("https", "http"), r"readable: use https://, or set plain_http = true.*backends\[0\]"),
        (GOOD.replace('"https://one.example:8000"', '"https://a", "https://a"'), r"named twice"),
        (GOOD.replace("remote", "local"), r"allowed are remote"),
        (GOOD + "replys = 3", r"did you mean `replies`"),
        (GOOD + 'key = "sk-123"', r"file:PATH or env:NAME"),
        (GOOD + 'ca = "missing.pem"', r"missing.pem holds no certificates"),
    ],
)
def test_a_mistake_in_the_file_is_named_without_secrets(tmp_path: Path, changed: str, said: str) -> None:
    path = tmp_path / "big.toml"
    path.write_text(changed)
    with pytest.raises(ConfigError, match=said) as refused:
        remote_engine(read_remote(path), 9)
    assert "sk-123" not in str(refused.value)


def test_plain_http_is_for_this_machine_or_by_consent(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    for text in (
        GOOD.replace("https://one.example", "http://127.0.0.1"),
        GOOD.replace("https", "http") + "plain_http = true",
    ):
        path.write_text(text)
        assert read_remote(path).served_as == "mine"


def test_the_artifact_is_verified_as_any_other(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    path.write_text(GOOD.replace('"a"', json.dumps(str(tmp_path / "none"))))
    made = parts(tmp_path, says(tmp_path, "x"))
    with pytest.raises(ArtifactError, match="none is not an artifact"):
        Loader(made.config).open(str(path))
    path.write_text(GOOD.replace('"a"', '"registry:mine@production"'))
    with pytest.raises(ConfigError, match="do not follow the registry"):
        Loader(made.config).open(str(path))
    made.ledger.close()


@pytest.fixture
def backed(tmp_path: Path) -> Any:
    """A server whose model runs on a backend that says "0123456789"."""
    with ExitStack() as stack:
        runner = says(tmp_path, "0123456789")
        backend = stack.enter_context(running(VllmServer(runner)))
        made = parts(tmp_path, runner)
        model = made.rollout.models[0]
        engine = RemoteEngine(Backends([Target(backend.url)]), Sizes("mine", 512, model.engine.vocabulary))
        current = CurrentModel(Model("tiny", engine, model.tokenizer, LINEAGE))
        made = msgspec.structs.replace(made, rollout=Rollout({made.config.model: current}, made.config.model))
        server = stack.enter_context(served(made, runner))
        stack.callback(runner.release)
        yield server, backend


def client(server: Served) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0)


def test_a_reply_is_metered_by_the_ids_that_came(backed: tuple[Served, VllmServer]) -> None:
    server, backend = backed
    answer = client(server).chat.completions.create(model="help", messages=[{"role": "user", "content": "hi"}])
    assert answer.choices[0].message.content == "0123456789"
    [row] = ledger_of(server)
    assert (row["prompt_tokens"], row["output_tokens"]) == (len(backend.requests[0]["token_ids"]), 11)
    assert answer.usage
    assert answer.usage.completion_tokens == 11


def test_a_stop_string_ends_the_reply_here_and_its_request_there(backed: tuple[Served, VllmServer]) -> None:
    server, backend = backed
    answer = client(server).chat.completions.create(
        model="help", messages=[{"role": "user", "content": "hi"}], stop=["45"]
    )
    assert answer.choices[0].message.content == "0123"
    until(lambda: backend.engine.running == 0)
    [row] = ledger_of(server)
    assert 6 <= row["output_tokens"] <= 11


def test_a_backend_that_dies_in_mid_reply_charges_what_was_delivered(backed: tuple[Served, VllmServer]) -> None:
    server, backend = backed
    backend.cut_after = 5
    body = {"model": "help", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    headers = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as response:
        lines = [line[6:] for line in response.read().decode().splitlines() if line.startswith("data: {")]
    chunks = [json.loads(line) for line in lines]
    text = "".join(one["choices"][0]["delta"].get("content") or "" for one in chunks if "choices" in one)
    assert text == "01234"
    assert "failed after 5 tokens" in chunks[-1]["error"]["message"]
    [row] = ledger_of(server)
    assert (row["outcome"], row["output_tokens"]) == ("error", 5)


SCHEMA = {"type": "object", "properties": {"colour": {"enum": ["red", "blue"]}}, "required": ["colour"],
          "additionalProperties": False}  # fmt: skip
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "c", "schema": SCHEMA}}


def test_a_schema_is_handed_on_and_holds(backed: tuple[Served, VllmServer]) -> None:
    server, backend = backed
    backend.grammars = server.tokenizer.grammars
    answer = client(server).chat.completions.create(
        model="help", messages=[{"role": "user", "content": "hi"}], response_format=FORMAT, max_tokens=60
    )
    assert json.loads(answer.choices[0].message.content or "")["colour"] in ("red", "blue")
    assert answer.choices[0].finish_reason == "stop"
    lark = backend.requests[0]["sampling_params"]["structured_outputs"]["grammar"]
    assert lark.startswith("%llguidance {}")
    assert '"enum": ["red", "blue"]' in lark
    [row] = ledger_of(server)
    assert answer.usage
    assert row["output_tokens"] == answer.usage.completion_tokens


def test_a_backend_that_leaves_the_grammar_ends_the_reply(backed: tuple[Served, VllmServer]) -> None:
    server, backend = backed  # it ignores grammars and says "0123456789"
    with pytest.raises(APIStatusError, match="left the reply's grammar") as refused:
        client(server).chat.completions.create(
            model="help", messages=[{"role": "user", "content": "hi"}], response_format=FORMAT
        )
    assert refused.value.status_code == 500
    assert ledger_of(server)[0]["outcome"] == "error"
    until(lambda: backend.engine.running == 0)


def test_a_grammar_that_a_backend_refuses_is_the_callers_error(backed: tuple[Served, VllmServer]) -> None:
    server, backend = backed
    backend.faults = [400]
    with pytest.raises(APIStatusError, match="does not support this grammar") as refused:
        client(server).chat.completions.create(
            model="help", messages=[{"role": "user", "content": "hi"}], response_format=FORMAT
        )
    assert refused.value.status_code == 400
