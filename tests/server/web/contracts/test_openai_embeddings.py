"""Embeddings by the official client, beside the encoder itself; metered, limited and bounded."""

import base64
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy
import openai
import pytest
from msgspec.structs import replace
from openai import OpenAI

from server.models.encoders import NamedEncoder
from server.skills.api_keys import digest
from server.skills.skill import Skill
from server.web.running import Parts
from tests.server.engine.runners.test_encoder import tiny
from tests.server.web.test_listeners import call
from tests.support.harness import HELP, KEY, Serve, Served, ledger_of, until

EMBED = Skill(name="embed", encoder="tiny", aliases=("text-embedding-3-small",), keys=(digest(KEY),))
TEXTS = ["how to prune", "a b c d", "j"]


@pytest.fixture
def encoder(tmp_path: Path) -> Any:
    from server.engine.runners.encoder import Encoder

    return Encoder.open(tiny(tmp_path / "encoder"))


@pytest.fixture
def embed(serve: Serve, encoder: Any) -> Any:
    """Starts a server with a skill that embeds, and another that chats."""

    def start(skill: Skill = EMBED, **settings: Any) -> Served:
        served = serve("ok", skills=(skill, HELP), **settings)
        arrange(served.parts, skill, encoder)
        return served

    return start


def arrange(parts: Parts, skill: Skill, encoder: Any) -> None:
    parts.loader.encoders.arrange([skill], {skill.encoder: NamedEncoder("tiny", encoder)})


def connect(served: Served) -> OpenAI:
    return OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)


def post(served: Served, **fields: Any) -> Any:
    body = {"model": "embed", "input": "how", **fields}
    return call(served.url, "/v1/embeddings", body, Authorization=f"Bearer {KEY}")


def test_the_vectors_are_the_encoders_in_both_formats(embed: Any, encoder: Any) -> None:
    served = embed()
    expected = encoder.encode(TEXTS)
    with connect(served) as client:
        coded = client.embeddings.create(model="text-embedding-3-small", input=TEXTS)  # base64, the client's default
        plain = client.embeddings.create(model="embed", input=TEXTS, encoding_format="float")
    for told in (coded, plain):
        assert numpy.allclose([item.embedding for item in told.data], expected.vectors, atol=1e-6)
        assert [item.index for item in told.data] == [0, 1, 2]
        assert told.usage.prompt_tokens == told.usage.total_tokens == sum(expected.tokens)
    assert (coded.model, plain.model) == ("text-embedding-3-small", "embed")
    raw = post(served, input=TEXTS[0], encoding_format="base64").json["data"][0]["embedding"]
    assert numpy.allclose(numpy.frombuffer(base64.b64decode(raw), "<f4"), expected.vectors[0], atol=1e-6)
    rows = ledger_of(served)
    assert {row["skill"] for row in rows} == {"embed"}
    assert [(row["prompt_tokens"], row["output_tokens"], row["outcome"]) for row in rows[:2]] == [
        (sum(expected.tokens), 0, "stop")
    ] * 2


def test_token_ids_are_encoded_as_their_texts(embed: Any, encoder: Any) -> None:
    served = embed()
    ids = [encoder.tokens(text) for text in TEXTS]
    with connect(served) as client:
        texts = client.embeddings.create(model="embed", input=TEXTS).data
        rows = client.embeddings.create(model="embed", input=ids).data
        one = client.embeddings.create(model="embed", input=ids[1]).data
    assert [item.embedding for item in rows] == [item.embedding for item in texts]
    assert numpy.allclose(one[0].embedding, texts[1].embedding, atol=1e-6)


def test_dimensions_are_the_first_ones_normalised_anew(embed: Any, encoder: Any) -> None:
    served = embed()
    whole = encoder.encode(["how"]).vectors[0]
    with connect(served) as client:
        cut = client.embeddings.create(model="embed", input="how", dimensions=8).data[0].embedding
    assert numpy.allclose(cut, whole[:8] / numpy.sqrt((whole[:8] ** 2).sum()), atol=1e-6)


def test_many_inputs_keep_their_order(embed: Any, encoder: Any) -> None:
    texts = [TEXTS[index % 3] + " a" * (index % 7) for index in range(50)]
    with connect(embed()) as client:
        found = client.embeddings.create(model="embed", input=texts).data
    expected = encoder.encode(texts).vectors
    assert numpy.allclose([item.embedding for item in found], expected, atol=1e-5)


def test_long_inputs_are_refused_or_cut_if_asked(embed: Any, encoder: Any) -> None:
    served = embed()
    long = "how " * 40
    refused = post(served, input=["a", long])
    assert (refused.status, refused.json["error"]["param"]) == (400, "input[1]")
    assert refused.json["error"]["code"] == "context_length_exceeded"
    assert "maximum context length is 14 tokens" in refused.json["error"]["message"]
    for fields in ({"truncate": True}, {"truncate_prompt_tokens": -1}):
        told = post(served, input=long, **fields).json
        assert told["usage"]["prompt_tokens"] == 16
        assert numpy.allclose(told["data"][0]["embedding"], encoder.encode([long]).vectors[0], atol=1e-6)
    assert post(served, input=long, truncate_prompt_tokens=5).json["usage"]["prompt_tokens"] == 7


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ""}, "input"),
        ({"input": ["a", ""]}, "input[1]"),
        ({"input": 5}, "input"),
        ({"input": [1, "a"]}, "input[1]"),
        ({"input": [5, 10**6]}, "input"),
        ({"input": [[-1]]}, "input[0][0]"),
        ({"input": ["a"] * 2049}, "input"),
        ({"dimensions": 33}, "dimensions"),
        ({"dimensions": 0}, "dimensions"),
        ({"encoding_format": "hex"}, "encoding_format"),
        ({"nonsense": 1}, "nonsense"),
        ({"model": "help"}, "model"),
    ],
)
def test_a_wrong_field_is_named(embed: Any, fields: dict[str, Any], param: str) -> None:
    served = embed()
    answer = post(served, **fields)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)
    assert ledger_of(served) == []


def test_a_skill_that_embeds_does_not_speak(embed: Any) -> None:
    served = embed()
    with connect(served) as client:
        with pytest.raises(openai.BadRequestError, match="only embeds"):
            client.chat.completions.create(model="embed", messages=[{"role": "user", "content": "hi"}])
        shown: Any = client.models.retrieve("text-embedding-3-small")
    assert (shown.root, shown.max_model_len, shown.dimensions) == ("embed", 14, 32)


def test_limits_and_budgets_hold(embed: Any) -> None:
    served = embed(replace(EMBED, tokens_per_day=10, requests_per_minute=3))
    used = post(served, input="a b c").json["usage"]["prompt_tokens"]
    assert used == 5
    assert post(served, input="a b c").status == 200
    spent = post(served, input="a b c")
    assert (spent.status, spent.json["error"]["code"]) == (429, "budget_exceeded")
    assert post(served).json["error"]["code"] == "rate_limited"
    assert sum(row["prompt_tokens"] for row in ledger_of(served)) == 10


def test_a_key_is_needed(embed: Any) -> None:
    served = embed()
    assert call(served.url, "/v1/embeddings", {"model": "embed", "input": "a"}).status == 401


def test_a_repeated_idempotency_key_is_not_counted_twice(embed: Any) -> None:
    served = embed()
    headers = {"Authorization": f"Bearer {KEY}", "Idempotency-Key": "once"}
    body = {"model": "embed", "input": "how"}
    first, second = (call(served.url, "/v1/embeddings", body, **headers) for _ in range(2))
    assert (first.status, second.status) == (200, 409)
    assert len(ledger_of(served)) == 1


def test_a_prefix_of_the_encoder_is_written_before_questions(embed: Any, encoder: Any) -> None:
    encoder.recipe = encoder.recipe._replace(query_prompt="to ")
    served = embed()
    told = post(served, input="prune", input_type="query").json["data"][0]["embedding"]
    assert numpy.allclose(told, encoder.encode(["to prune"]).vectors[0], atol=1e-6)


class Held:
    """An encoder that waits in `encode` until it is released."""

    def __init__(self, encoder: Any) -> None:
        self.entered, self.released = threading.Event(), threading.Event()
        self._encoder = encoder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encoder, name)

    def encode(self, inputs: Any) -> Any:
        self.entered.set()
        assert self.released.wait(120)
        return self._encoder.encode(inputs)


def test_others_are_answered_meanwhile_and_a_stopping_server_waits(embed: Any, encoder: Any) -> None:
    served, held = embed(), Held(encoder)
    arrange(served.parts, replace(EMBED, encoder="held"), held)
    served.parts.skills.replace([replace(EMBED, encoder="held"), HELP])
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(post, served)
        assert held.entered.wait(120)
        assert call(served.url, "/health").status == 200
        assert not served.apps.replies.idle
        served.stop()
        until(lambda: served.apps.replies.draining)
        held.released.set()
        assert answer.result().status == 200
    until(lambda: [row["outcome"] for row in ledger_of(served)] == ["stop"])


def test_a_failing_encoder_leaves_no_open_row(embed: Any, encoder: Any) -> None:
    class Failing(Held):
        def encode(self, inputs: Any) -> Any:
            raise RuntimeError("broken")

    served = embed()
    arrange(served.parts, EMBED, Failing(encoder))
    assert post(served).status == 500
    assert [(row["outcome"], row["prompt_tokens"]) for row in ledger_of(served)] == [("rejected", 0)]
    assert served.apps.replies.idle
