"""Tokenisation in the forms of vLLM and llama-server, against the tokenizer library itself."""

from typing import Any

import pytest
from msgspec.structs import replace
from tokenizers import Tokenizer

from tests.server.web.test_listeners import Answer, call
from tests.support.harness import END, HELP, KEY, OTHER, OTHER_KEY, START, Serve, Served, ledger_of

TEXT = "Ünïcödé 🌱 \u20ac"
SECRET = "a prompt that stays the skill's"
SKILLS = (replace(HELP, system=SECRET, aliases=("Gpt/4",)), OTHER)


def post(served: Served, path: str, body: Any, key: str = KEY) -> Answer:
    return call(served.url, path, body, Authorization=f"Bearer {key}")


def library(served: Served) -> Tokenizer:
    return Tokenizer.from_file(f"{served.parts.config.model}/tokenizer.json")


def test_a_prompt_as_in_vllm(serve: Serve) -> None:
    served = serve(skills=SKILLS)
    ids = library(served).encode(TEXT).ids
    told = post(served, "/tokenize", {"model": "help", "prompt": TEXT, "return_token_strs": True}).json
    assert told["tokens"] == ids
    assert (told["count"], told["max_model_len"]) == (len(ids), 512)
    assert told["token_strs"] == [library(served).id_to_token(id) for id in ids]
    back = post(served, "/detokenize", {"model": "Gpt/4", "tokens": ids}).json
    assert back["prompt"] == back["content"] == TEXT


def test_a_text_as_in_llama_server(serve: Serve) -> None:
    served = serve(skills=SKILLS)
    ids = library(served).encode(TEXT).ids
    assert post(served, "/tokenize", {"content": TEXT}).json == {"tokens": ids}  # no model: the key opens one
    pieces = post(served, "/tokenize", {"content": TEXT, "with_pieces": True}).json["tokens"]
    assert [piece["id"] for piece in pieces] == ids
    raw = b"".join(bytes(p["piece"]) if isinstance(p["piece"], list) else p["piece"].encode() for p in pieces)
    assert raw.decode() == TEXT


def test_special_tokens_are_text_unless_asked(serve: Serve) -> None:
    served = serve(skills=SKILLS)
    text = f"{START}user"
    plain = post(served, "/tokenize", {"content": text}).json["tokens"]
    read = post(served, "/tokenize", {"content": text, "parse_special": True}).json["tokens"]
    assert len(plain) == len(text)
    assert read == library(served).encode(text).ids
    assert post(served, "/detokenize", {"tokens": read}).json["content"] == text


@pytest.mark.parametrize(("reply", "end"), [(True, f"{START}assistant\n"), (False, "")])
def test_a_conversation_without_the_skills_own_prompt(serve: Serve, reply: bool, end: str) -> None:
    served = serve(skills=SKILLS)
    body = {"model": "help", "messages": [{"role": "user", "content": "hi"}], "add_generation_prompt": reply}
    told = post(served, "/tokenize", body).json
    assert library(served).decode(told["tokens"], skip_special_tokens=False) == f"{START}user\nhi{END}\n{end}"


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/tokenize", {}, "prompt"),
        ("/tokenize", {"prompt": "a", "content": "b"}, "prompt"),
        ("/tokenize", {"prompt": 3}, "prompt"),
        ("/tokenize", {"prompt": "a", "tools": []}, "tools"),
        ("/tokenize", {"messages": []}, "messages"),
        ("/tokenize", {"messages": [{"role": "x", "content": "y"}]}, "messages[0].role"),
        (
            "/tokenize",
            {"messages": [{"role": "user", "content": "y"}], "add_special_tokens": True},
            "add_special_tokens",
        ),
        ("/detokenize", {}, "tokens"),
        ("/detokenize", {"tokens": [-1]}, "tokens[0]"),
        ("/detokenize", {"tokens": [1, 258]}, "tokens"),
    ],
)
def test_a_wrong_field_is_named(serve: Serve, path: str, body: Any, param: str) -> None:
    answer = post(serve(skills=SKILLS), path, body)
    assert (answer.status, answer.json["error"]["param"]) == (400, param)


def test_a_key_is_needed_and_opens_its_skills_only(serve: Serve) -> None:
    served = serve(skills=SKILLS)
    for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
        assert call(served.url, path, body).status == 401
        assert post(served, path, {**body, "model": "help"}, OTHER_KEY).status == 403
        assert post(served, path, {**body, "model": "nobody"}).status == 404
    assert ledger_of(served) == []


def test_long_texts_are_read_in_a_thread_and_bounded(serve: Serve) -> None:
    served = serve(skills=SKILLS)
    told = post(served, "/tokenize", {"prompt": "a" * 500_000}).json
    assert told["count"] == 500_000
    assert post(served, "/tokenize", {"prompt": "a" * 2_000_000}).status == 413
