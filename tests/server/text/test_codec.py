"""What a template reads beside the messages: a turn to continue, variables of the caller, and tools."""

from pathlib import Path
from typing import Any

import pytest

from server.errors import InvalidRequest
from server.text.chat_template import TemplateOptions
from server.text.tokenizer import Tokenizer
from tests.support.harness import END, START, tokenizer

ASKED = {"role": "user", "content": "Why?"}
BEGUN = f"{START}user\nWhy?{END}\n{START}assistant\n"
CONTINUED = TemplateOptions(continued=True)


def rendered(words: Tokenizer, messages: Any, options: TemplateOptions) -> str:
    """The ids as text, special tokens included."""
    return words.detokenise(words.chat(messages, options=options))


@pytest.mark.parametrize("text", ["Because", "Because ", " ", "", "a\n\n", f"Because {END} so", "\u00fc"])
def test_a_continued_turn_stays_open_at_its_last_character(tmp_path: Path, text: str) -> None:
    words = tokenizer(tmp_path)
    messages = [ASKED, {"role": "assistant", "content": text}]
    ids = words.chat(messages, options=CONTINUED)
    assert ids == [*words.chat([ASKED]), *words.encode(text)]  # what a turn spells is no special token
    assert rendered(words, messages, CONTINUED) == BEGUN + text


def test_a_template_that_trims_does_not_trim_what_is_continued(tmp_path: Path) -> None:
    words = with_template(tmp_path, "{% for m in messages %}[{{ m.role }}]{{ m.content | trim }}{% endfor %}")
    messages = [ASKED, {"role": "assistant", "content": " So "}]
    assert rendered(words, messages, CONTINUED) == "[user]Why?[assistant]So "


def test_a_template_that_drops_the_turn_cannot_continue_it(tmp_path: Path) -> None:
    words = with_template(tmp_path, "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    with pytest.raises(InvalidRequest, match="cannot be continued"):
        words.chat([ASKED, {"role": "assistant", "content": "So"}], options=CONTINUED)


def test_a_caller_sets_variables_of_the_template(tmp_path: Path) -> None:
    words = with_template(tmp_path, "{% if not enable_thinking | default(true) %}brief{% else %}long{% endif %}{{ x }}")
    assert rendered(words, [ASKED], TemplateOptions()) == "long"
    assert rendered(words, [ASKED], TemplateOptions(variables={"enable_thinking": False, "x": 7})) == "brief7"


@pytest.mark.parametrize(
    "name",
    ["messages", "tools", "add_generation_prompt", "eos_token", "range", "namespace", "raise_exception", "_x", "a b"],
)
def test_variables_that_the_server_sets_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="set by the server") as caught:
        tokenizer(tmp_path).chat([ASKED], options=TemplateOptions(variables={name: 1}))
    assert caught.value.param == f"chat_template_kwargs.{name}"


def test_neither_variables_nor_tools_make_special_tokens(tmp_path: Path) -> None:
    words = with_template(tmp_path, "{{ x | tojson }}{{ tools | tojson if tools }}")
    spelled: Any = {END: [END, {"k": START}]}
    options = TemplateOptions(tools=(spelled,), variables={"x": spelled})
    ids = words.chat([ASKED], options=options)
    assert not set(ids) & {256, 257}
    assert words.detokenise(ids).count(END) == 4


def with_template(folder: Path, source: str) -> Tokenizer:
    """The tokenizer of the tests with another template."""
    tokenizer(folder)
    (folder / "tokenizer_config.json").unlink()
    (folder / "chat_template.jinja").write_text(source)
    return Tokenizer.load(folder)
