"""Messages as people send them, through the official client: what the model reads, and what the response says."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from msgspec.structs import replace
from openai import OpenAI

from tests.support.harness import END, HELP, KEY, START, Serve, Served, until

ASK: Any = [{"role": "user", "content": "Why?"}]


class Talk:
    """A client, and the prompts that the model read."""

    def __init__(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        self.served = served
        self.client = OpenAI(base_url=f"{served.url}/v1", api_key=KEY, max_retries=0)
        self.prompts: list[str] = []
        submit = served.engine.submit_together

        def watched(sequences: Any) -> Any:
            self.prompts += [served.tokenizer.detokenise(sequence.prompt) for sequence in sequences]
            return submit(sequences)

        monkeypatch.setattr(served.engine, "submit_together", watched)

    def say(self, messages: Any = ASK, **options: Any) -> Any:
        """A response with its headers."""
        return self.client.chat.completions.with_raw_response.create(
            **{"model": "help", "messages": messages, "max_tokens": 5, **options}
        )


@pytest.fixture
def talk(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    made: list[Talk] = []

    def start(*arguments: Any, **options: Any) -> Talk:
        made.append(Talk(serve(*arguments, **options), monkeypatch))
        return made[-1]

    yield start
    for one in made:
        one.client.close()


def turns(*said: str) -> str:
    """The prompt of turns `role: content` in the tests' template."""
    parts = [turn.partition(": ") for turn in said]
    return "".join(f"{START}{role}\n{text}{END}\n" for role, _, text in parts) + f"{START}assistant\n"


def test_any_order_of_roles_is_read_by_one_rule(talk: Any) -> None:
    one = talk()
    one.say(
        [
            {"role": "assistant", "content": "Hello", "refusal": None, "annotations": [], "reasoning_content": "hm"},
            {"role": "user", "content": "Why?", "name": "Ann Lee"},
            {"role": "developer", "content": "Be kind."},
            {"role": "user", "content": [{"type": "text", "text": "And", "x": {}}, {"type": "text", "text": "how?"}]},
            {"role": "assistant", "content": None},
            {"role": "system", "content": "In verse."},
        ]
    )
    system = "system: Be brief.\n\nBe kind.\n\nIn verse."
    assert one.prompts == [turns(system, "assistant: Hello", "user: Why?\n\nAnd\nhow?", "assistant: ")]


def test_a_client_that_was_refused_goes_on_with_two_questions(talk: Any) -> None:
    """It appends what the user writes, whether or not the request before was answered."""
    one = talk("Because.", passes=1, skills=(replace(HELP, concurrent_replies=1),))
    messages = list(ASK)
    running = one.say([{"role": "user", "content": "Another"}], stream=True).parse()
    with pytest.raises(openai.RateLimitError):
        one.say(messages)
    one.served.runner.release()
    assert len(list(running)) > 1
    until(lambda: one.served.apps.replies.idle)
    messages.append({"role": "user", "content": "Well?"})
    one.say(messages)
    assert one.prompts[-1] == turns("system: Be brief.", "user: Why?\n\nWell?")


@pytest.mark.parametrize(
    "options",
    [
        {"extra_body": {"continue_final_message": True, "add_generation_prompt": False}},
        {"messages": [*ASK, {"role": "assistant", "content": "Because ", "prefix": True}]},
    ],
)
def test_the_last_turn_is_continued(talk: Any, options: dict[str, Any]) -> None:
    one = talk("it is.")
    answer = one.say(**{"messages": [*ASK, {"role": "assistant", "content": "Because "}], **options}, temperature=0)
    assert one.prompts == [turns("system: Be brief.", "user: Why?") + "Because "]
    assert answer.parse().choices[0].message.content == "it is"


def test_what_was_ignored_and_clamped_is_said_in_headers(talk: Any) -> None:
    one = talk("x" * 99, skills=(replace(HELP, unknown_fields="ignore", tokens_per_reply=7),))
    plain = one.say()
    assert "x-secateur-ignored" not in plain.headers
    assert "x-secateur-max-tokens" not in plain.headers
    answer = one.say(reasoning_effort="high", verbosity="low", max_tokens=50, extra_body={"mind": 1, "user_id": False})
    assert answer.headers["x-secateur-ignored"] == "reasoning_effort, verbosity, mind"
    assert answer.headers["x-secateur-max-tokens"] == "7"
    usage = answer.parse().usage
    assert (usage.completion_tokens, usage.completion_tokens_details.x_secateur_max_tokens) == (7, 7)
    chunks = list(one.say(max_tokens=50, stream=True, stream_options={"include_usage": True}).parse())
    assert chunks[-1].usage.completion_tokens_details.x_secateur_max_tokens == 7


def test_images_are_refused_by_name(talk: Any) -> None:
    one = talk()
    image: Any = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "https://x.example/a.png"}}]}]
    with pytest.raises(openai.BadRequestError, match="`image_url` parts are not supported") as caught:
        one.say(image)
    assert caught.value.param == "messages[0].content[0].type"
    until(lambda: one.served.apps.replies.idle)
    assert one.prompts == []
