"""Log probabilities as the official client reads them: against transformers' own, and beside the text."""

from typing import Any

import openai
import pytest
import torch
from msgspec.structs import replace
from openai import OpenAI

from server.engine.runners.transformers_runner import TransformersRunner
from tests.server.engine.native.tiny import own_logits, tiny
from tests.server.web.contracts.test_openai_client import ASK, connect
from tests.support.harness import HELP, KEY, Serve, Served

pytestmark = pytest.mark.slow

TEXT = "Hello, world! Ünïcödé 🌱"
WORDS = 258  # of the harness's tokenizer: a token for each byte, and two marks


def answer(client: OpenAI, *, stream: bool, **options: Any) -> tuple[str, list[Any]]:
    """The text and its tokens' scores; of a stream, each chunk's tokens must cover its text."""
    if not stream:
        choice = client.chat.completions.create(model="help", messages=ASK, **options).choices[0]
        assert choice.logprobs is not None
        return choice.message.content or "", list(choice.logprobs.content or [])
    text = ""
    scores: list[Any] = []
    for chunk in client.chat.completions.create(model="help", messages=ASK, stream=True, **options):
        text += chunk.choices[0].delta.content or ""
        if chunk.choices[0].logprobs is not None:
            scores += chunk.choices[0].logprobs.content or []
        assert spelt(scores).startswith(text)
    return text, scores


def spelt(scores: list[Any]) -> str:
    return b"".join(bytes(score.bytes or ()) for score in scores).decode(errors="replace")


def ids_of(served: Served) -> dict[tuple[str, tuple[int, ...] | None], int]:
    """Each token's text in a reply."""
    found = {}
    for id in range(WORDS):
        token, raw = served.tokenizer.spelling(id)
        found[token, None if raw is None else tuple(raw)] = id
    return found


def named(score: Any) -> tuple[str, tuple[int, ...] | None]:
    return score.token, None if score.bytes is None else tuple(score.bytes)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("options", [{"temperature": 0, "top_logprobs": 5}, {"seed": 3, "top_p": 0.9}])
def test_logprobs_are_the_log_softmax_of_the_models_logits(serve: Serve, stream: bool, options: dict[str, Any]) -> None:
    shape = {"vocab_size": WORDS, "max_position_embeddings": 512}
    runner: Any = TransformersRunner(tiny("llama", **shape), slots=2, context=512)
    served = serve(runner=runner)
    bias = {"5": 3, "257": -100}  # no stop; the bias is not seen in what the model thought
    with connect(served) as client:
        text, scores = answer(client, stream=stream, logprobs=True, max_tokens=40, logit_bias=bias, **options)
    assert len(scores) >= 30
    assert spelt(scores) == text
    known = ids_of(served)
    prompt = served.tokenizer.chat([{"role": "system", "content": HELP.system}, *ASK])
    ids = [known[named(score)] for score in scores]
    exact = own_logits(tiny("llama", **shape), prompt + ids)[len(prompt) - 1 :].double().log_softmax(-1)
    for score, id, row in zip(scores, ids, exact, strict=False):
        assert score.logprob == pytest.approx(float(row[id]), abs=1e-4)
        best = [float(row[known[named(other)]]) for other in score.top_logprobs]
        assert [other.logprob for other in score.top_logprobs] == pytest.approx(best, abs=1e-4)
        assert best == pytest.approx(torch.topk(row, options.get("top_logprobs", 0)).values.tolist(), abs=1e-4)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stop", [None, "world", "🌱", "o, w", "ö"])
def test_each_token_of_the_text_has_a_logprob(serve: Serve, stop: str | None, stream: bool) -> None:
    with connect(serve(TEXT)) as client:
        options = {"stop": stop} if stop else {}
        text, scores = answer(client, stream=stream, logprobs=True, top_logprobs=2, **options)
    assert text == (TEXT[: TEXT.index(stop)] if stop else TEXT)
    assert spelt(scores) == text
    assert len(scores) == len(text.encode())  # the tokenizer has one for each byte
    assert all(-1e-6 < score.logprob <= 0 and len(score.top_logprobs) == 2 for score in scores)


@pytest.mark.parametrize("stream", [False, True])
def test_a_cut_character_keeps_its_tokens(serve: Serve, stream: bool) -> None:
    with connect(serve(TEXT)) as client:
        text, scores = answer(client, stream=stream, logprobs=True, max_tokens=15)
    assert text == "Hello, world! \N{REPLACEMENT CHARACTER}"
    assert [score.bytes for score in scores] == [[byte] for byte in TEXT.encode()[:15]]
    assert scores[-1].token == "\N{REPLACEMENT CHARACTER}"
    assert scores[-1].top_logprobs == []


def test_no_logprobs_unless_requested(serve: Serve) -> None:
    with connect(serve(TEXT)) as client:
        choice = client.chat.completions.create(model="help", messages=ASK, logprobs=False, top_logprobs=0).choices[0]
        assert choice.logprobs is None
        for chunk in client.chat.completions.create(model="help", messages=ASK, stream=True):
            assert chunk.choices[0].logprobs is None


def test_a_skill_can_forbid_logprobs(serve: Serve) -> None:
    served = serve(TEXT)
    served.parts.skills.replace([replace(HELP, logprobs=False)])
    with connect(served) as client, pytest.raises(openai.BadRequestError, match="does not allow logprobs") as caught:
        client.chat.completions.create(model="help", messages=ASK, logprobs=True)
    assert caught.value.param == "logprobs"


@pytest.mark.parametrize("stream", [False, True])
def test_a_repeated_request_has_the_same_logprobs(serve: Serve, stream: bool) -> None:
    with connect(serve(TEXT), KEY, default_headers={"Idempotency-Key": "one"}) as client:
        first = answer(client, stream=stream, logprobs=True, top_logprobs=3)
        assert answer(client, stream=stream, logprobs=True, top_logprobs=3) == first
    assert spelt(first[1]) == TEXT
