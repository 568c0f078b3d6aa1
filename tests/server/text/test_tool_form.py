"""The form of calls, read from templates that write them as well-known models' do."""

import pytest

from server.text.chat_template import ChatTemplate
from server.text.tool_form import HERMES, ToolForm, tool_form

TURNS = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}CALLS<|end|>{% endfor %}"
HERMES_CALLS = (  # Qwen 2.5, Qwen 3, Hermes
    "{% for call in m.tool_calls or [] %}{% set call = call.function %}"
    "{{ '' if loop.first and not m.content else '\n' }}"
    '<tool_call>\n{"name": "{{ call.name }}", "arguments": {{ call.arguments | tojson }}}\n</tool_call>{% endfor %}'
)
LLAMA_CALLS = (  # Llama 3
    "{% if m.tool_calls %}{% if m.tool_calls | length != 1 %}{{ raise_exception('one call only') }}{% endif %}"
    "{% set call = m.tool_calls[0].function %}"
    '{"name": "{{ call.name }}", "parameters": {{ call.arguments | tojson }}}{% endif %}'
)
MISTRAL_CALLS = (
    "{% if m.tool_calls %}[TOOL_CALLS][{% for c in m.tool_calls %}{{ c.function | tojson }}{% endfor %}]{% endif %}"
)
XML_CALLS = (  # Qwen 3 Coder, GLM
    "{% for call in m.tool_calls or [] %}<function={{ call.function.name }}>"
    "{% for name, value in call.function.arguments.items() %}<parameter={{ name }}>{{ value }}</parameter>{% endfor %}"
    "</function>{% endfor %}"
)


@pytest.mark.parametrize(
    ("calls", "form"),
    [
        (HERMES_CALLS, HERMES),
        (LLAMA_CALLS, ToolForm('{"name": "', '", "parameters": ', "}", None)),
        (MISTRAL_CALLS, None),  # its brackets are a special token
        (XML_CALLS, None),
        ("", None),
    ],
)
def test_the_form_of_calls_is_found(calls: str, form: ToolForm | None) -> None:
    found = tool_form(ChatTemplate(TURNS.replace("CALLS", calls), {}), ["<|end|>", "[TOOL_CALLS]"])
    assert found == form


def test_an_empty_thought_before_a_call_is_no_part_of_it() -> None:
    """As Qwen 3 writes one in the last turn."""
    thought = "{% if m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}"
    source = TURNS.replace("{{ m.content }}", thought).replace("CALLS", HERMES_CALLS)
    assert tool_form(ChatTemplate(source, {}), ["<|end|>"]) == HERMES


def test_a_call_is_triggered_by_what_precedes_its_json() -> None:
    assert HERMES.trigger == "<tool_call>"
    assert ToolForm('{"name": "', '", "parameters": ', "}", None).trigger == ""
    assert HERMES.written("add", '{"a": 1}') == '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
