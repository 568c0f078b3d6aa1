"""Structured output through the official client: parsed, streamed, with every other option, and metered to the token.

The model's logits are noise, so that only the grammar makes a reply match.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import jsonschema
import pytest
import torch
from msgspec.structs import replace
from openai import BadRequestError, LengthFinishReasonError, OpenAI
from pydantic import BaseModel, Field
from torch import Tensor

from server.engine.batch import Batch
from tests.server.web.contracts.test_metrics import samples
from tests.server.web.contracts.test_openai_client import connect
from tests.support.fakes import FakeRunner
from tests.support.harness import HELP, OTHER, Serve, Served, ledger_of, until

ASK: Any = [{"role": "user", "content": 'Repeat this: {"name": "Ann", "name": "Ann"'}]
SKILL = replace(HELP, max_tokens=400, logprobs=True, choices=4, tokens_per_reply=400)


class Part(BaseModel, extra="forbid"):
    kind: Literal["bolt", "nut"]
    sizes: list[int] = Field(max_length=3)


class Order(BaseModel, extra="forbid"):
    name: str = Field(max_length=8)
    urgent: bool
    parts: list[Part] = Field(min_length=1, max_length=2)
    note: str = Field(max_length=60)


SCHEMA = Order.model_json_schema()
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "order", "schema": SCHEMA, "strict": True}}


def only(name: str, text: str) -> dict[str, Any]:
    """The schema of an object with one text."""
    properties = {name: {"const": text}}
    return {"type": "object", "properties": properties, "required": [name], "additionalProperties": False}


class NoiseRunner(FakeRunner):
    """Logits that depend on the last id only, so that greedy texts repeat themselves."""

    def forward(self, batch: Batch) -> Tensor:
        self.steps += 1
        rows = []
        for sequence in batch.sampled:
            generator = torch.Generator().manual_seed(sequence.tokens[-1])
            rows.append(torch.randn(self.vocabulary, generator=generator) * 3)
        return torch.stack(rows) if rows else torch.empty(0, self.vocabulary)


@pytest.fixture
def served(serve: Serve) -> Served:
    return serve(runner=NoiseRunner(258), skills=(SKILL, OTHER), context=1024)


@pytest.fixture
def client(served: Served) -> Iterator[OpenAI]:
    with connect(served) as client:
        yield client


def test_a_parsed_reply_is_the_class(client: OpenAI, served: Served) -> None:
    for seed in range(4):
        reply = client.chat.completions.parse(model="help", messages=ASK, response_format=Order, seed=seed)
        choice = reply.choices[0]
        assert isinstance(choice.message.parsed, Order)
        assert choice.finish_reason == "stop"
        text = choice.message.content or ""
        jsonschema.validate(json.loads(text), SCHEMA)
        assert re.fullmatch(r'\{"name": ".*", "urgent": (true|false), "parts": \[\{.*\}\], "note": .*\}', text)
        assert reply.usage is not None
        assert reply.usage.completion_tokens == len(text.encode()), "one token a byte, and none for the end"
        row = ledger_of(served)[-1]
        assert (row["output_tokens"], row["outcome"]) == (reply.usage.completion_tokens, "stop")


def test_a_streamed_reply_is_that_of_a_whole_one(client: OpenAI) -> None:
    whole = client.chat.completions.parse(model="help", messages=ASK, response_format=Order, seed=5)
    with client.chat.completions.stream(model="help", messages=ASK, response_format=Order, seed=5) as stream:
        events = [event.type for event in stream]
        streamed = stream.get_final_completion()
    assert streamed.choices[0].message.parsed == whole.choices[0].message.parsed
    assert events.count("content.delta") > 3
    assert "content.done" in events


def test_forced_tokens_take_no_pass_and_are_metered(client: OpenAI, served: Served) -> None:
    constant = only("motto", "Every token is counted.")
    schema: Any = {"type": "json_schema", "json_schema": {"name": "motto", "schema": constant}}
    text = '{"motto": "Every token is counted."}'
    before = served.runner.steps
    reply = client.chat.completions.create(model="help", messages=ASK, response_format=schema)
    assert reply.choices[0].message.content == text
    assert served.runner.steps - before < 6, "the prompt's pass, and one for the first forced run"
    assert reply.usage is not None
    assert reply.usage.completion_tokens == len(text) == ledger_of(served)[-1]["output_tokens"]
    figures = samples(served)
    assert figures["secateur_forced_tokens_total", "tiny"] == len(text) - 1, "the first is sampled after the prompt"
    assert figures["secateur_grammar_compile_seconds_count", "tiny"] == 1
    assert figures["secateur_grammar_compile_seconds_sum", "tiny"] > 0


@pytest.mark.parametrize("most", [1, 2, 11, 12, 13])
def test_max_tokens_cuts_forced_tokens_exactly(client: OpenAI, served: Served, most: int) -> None:
    text = '{"a": "bcd"}'
    reply = client.chat.completions.create(
        model="help", messages=ASK, max_tokens=most, extra_body={"guided_json": only("a", "bcd")}
    )
    assert reply.choices[0].message.content == text[:most]
    assert reply.choices[0].finish_reason == ("length" if most < len(text) else "stop")
    assert reply.usage is not None
    assert reply.usage.completion_tokens == min(most, len(text)) == ledger_of(served)[-1]["output_tokens"]


def test_a_reply_cut_by_max_tokens_is_told_to_the_client(client: OpenAI) -> None:
    with pytest.raises(LengthFinishReasonError):
        client.chat.completions.parse(model="help", messages=ASK, response_format=Order, max_tokens=9)


def test_replies_are_the_same_with_and_without_guesses_and_beside_others(serve: Serve, tmp_path: Any) -> None:
    """Greedy, sampled and penalised; the guesses repeat the prompt, which spells part of the reply."""
    variants: list[dict[str, Any]] = [
        {"temperature": 0},
        {"temperature": 1.2, "seed": 3},
        {"temperature": 0.8, "seed": 4, "top_p": 0.9, "frequency_penalty": 0.5},
        {"temperature": 0.8, "seed": 4, "logprobs": True, "top_logprobs": 2},
    ]
    replies: dict[str, list[str | None]] = {}
    passes: dict[str, int] = {}
    for look_up in ("off", "on"):
        server = serve(runner=NoiseRunner(258), skills=(SKILL, OTHER), context=1024, look_up=look_up, ledger=look_up)
        with connect(server) as client:
            replies[look_up] = [
                client.chat.completions.create(model="help", messages=ASK, response_format=FORMAT, **options)
                .choices[0]
                .message.content
                for options in variants
            ]
            together = client.chat.completions.create(
                model="help", messages=ASK, response_format=FORMAT, n=3, seed=2, temperature=1.2
            )
            replies[look_up].append(together.choices[1].message.content)
            passes[look_up] = server.runner.steps
    assert replies["on"] == replies["off"]
    assert passes["on"] < passes["off"], "something was guessed"
    assert replies["on"][4] == replies["on"][1], "the second choice has the seed after the first's, 3"


def test_logprobs_are_the_models_own_for_forced_tokens_too(client: OpenAI) -> None:
    plain = client.chat.completions.create(model="help", messages=ASK, response_format=FORMAT, seed=8)
    reply = client.chat.completions.create(
        model="help", messages=ASK, response_format=FORMAT, seed=8, logprobs=True, top_logprobs=1
    )
    assert reply.choices[0].message.content == plain.choices[0].message.content
    assert reply.choices[0].logprobs
    entries = reply.choices[0].logprobs.content or []
    assert reply.usage is not None
    assert len(entries) == reply.usage.completion_tokens
    assert "".join(entry.token for entry in entries).isascii() or entries
    assert any(entry.top_logprobs[0].token != entry.token for entry in entries), "the mask does not change them"


def test_a_stop_string_ends_a_constrained_reply(client: OpenAI) -> None:
    reply = client.chat.completions.create(model="help", messages=ASK, stop=["parts"], response_format=FORMAT, seed=1)
    assert (reply.choices[0].message.content or "").endswith(', "')
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "pattern"),
    [
        ({"structured_outputs": {"regex": "[0-9]{4}-[0-9]{2}"}}, "[0-9]{4}-[0-9]{2}"),
        ({"structured_outputs": {"choice": ["yes", "no", "\u00fcber/\u4f60"]}}, "yes|no|\u00fcber/\u4f60"),
        ({"guided_grammar": 'start: "I like " ("cats" | "dogs") "."'}, r"I like (cats|dogs)\."),
        ({"grammar": 'root ::= "a" [0-9]{3}'}, "a[0-9]{3}"),
        ({"response_format": {"type": "json_object"}, "max_tokens": 3}, r"(?s)\{.*"),
    ],
)
def test_other_grammars_match(client: OpenAI, fields: dict[str, Any], pattern: str) -> None:
    reply = client.chat.completions.create(model="help", messages=ASK, extra_body={"ignore_eos": True, **fields})
    assert re.fullmatch(pattern, reply.choices[0].message.content or "")
    if "max_tokens" not in fields:
        assert reply.choices[0].finish_reason == "stop"


def test_an_unsupported_schema_is_refused_before_anything_is_charged(client: OpenAI, served: Served) -> None:
    schema: Any = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"not": {}}}}
    with pytest.raises(BadRequestError, match="not") as caught:
        client.chat.completions.create(model="help", messages=ASK, response_format=schema)
    assert caught.value.param == "response_format.json_schema.schema"
    assert not ledger_of(served)


def test_a_grammar_that_becomes_too_complex_ends_its_reply_with_an_error(client: OpenAI, served: Served) -> None:
    """After `{"a": true, "b": {`, each of 2,000 properties may follow."""
    many = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(2000)}}
    chosen = {"type": "object", "properties": {"a": {"type": "boolean"}, "b": many}, "required": ["a", "b"]}
    extra = {"guided_json": chosen}
    with pytest.raises(BadRequestError, match="alternatives"):
        client.chat.completions.create(model="help", messages=ASK, extra_body=extra)
    until(lambda: not served.engine.running)
    assert ledger_of(served)[-1]["outcome"] == "error"
    assert client.chat.completions.create(model="help", messages=ASK, max_tokens=3).usage


def test_completions_can_be_constrained_too(serve: Serve) -> None:
    skill = replace(SKILL, completions=True)
    with connect(serve(runner=NoiseRunner(258), skills=(skill, OTHER), context=1024)) as client:
        reply = client.completions.create(
            model="help", prompt="An order: ", max_tokens=300, seed=3, extra_body={"response_format": FORMAT}
        )
        jsonschema.validate(json.loads(reply.choices[0].text), SCHEMA)
