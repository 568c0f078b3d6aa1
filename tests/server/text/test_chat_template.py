"""Chat templates: common features work, and hostile templates end in one sentence."""

import time
from datetime import datetime

import pytest

from server.errors import ArtifactError
from server.text.budget import Budget
from server.text.chat_template import ChatTemplate


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__.__subclasses__()[0]() }}",
        "{{ raise_exception.__globals__['datetime'] }}",
        "{% set _ = messages.append(1) %}{{ messages }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{% for i in range(10000000000000000000000) %}x{% endfor %}",
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "{% for i in range(2000) %}{{ 'a' }}{% for j in range(40) %}xxxxxxxxxxxxxxx{% endfor %}{% endfor %}",
        "{{ 'a' * 10**10 }}",
        "{{ [1] * 1000000000 }}",
        "{{ 9 ** 99999999 }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ missing.attribute.of_it }}",
        "{{ 1 / 0 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% for a in t %}{% for b in t %}{% for c in t %}{% endfor %}{% endfor %}{% endfor %}",
        "{% macro two(n) %}{% if n %}{{ two(n - 1) }}{{ two(n - 1) }}{% endif %}{% endmacro %}{{ two(40) }}",
        "{% set n = namespace(x='xx') %}{% for i in range(40) %}{% set n.x = n.x ~ n.x %}{% endfor %}",
        "{% set n = namespace(x='xx') %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=[1]) %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}",
        "{% set n = namespace(x=9) %}{% for i in range(60) %}{% set n.x = n.x * n.x %}{% endfor %}",
        "{{ 'a'.ljust(999999999) }}",
        "{{ '{:999999999}'.format(1) }}",
        "{{ '%999999999d' % 1 }}",
        "{{ ('x' ~ t).replace('', t).replace('', t ~ t).replace('', t ~ t ~ t) }}",
        "{{ t | replace('x', t) | replace('x', t) | replace('x', t) }}",
        "{{ t.join(t).join(t).join(t) }}",
        "{{ t | join(t) | join(t) | join(t) }}",
        "{{ messages | tojson(indent=999999999) }}",
    ],
)
def test_a_hostile_template_ends_in_a_sentence(template: str) -> None:
    compiled = ChatTemplate("{% set t = messages[0].content %}" + template, {})
    with pytest.raises(ArtifactError, match="chat template failed"):
        compiled.render([{"role": "user", "content": "x" * 300}])


@pytest.mark.parametrize("name", ["center", "format", "indent", "pprint", "wordwrap", "xmlattr", "urlize"])
def test_unbounded_filters_are_refused_at_load(name: str) -> None:
    with pytest.raises(ArtifactError, match="not valid"):
        ChatTemplate(f"{{{{ 'x' | {name} }}}}", {})


def test_unbounded_globals_do_not_exist() -> None:
    for name in ("lipsum", "cycler", "joiner"):
        with pytest.raises(ArtifactError, match="failed"):
            ChatTemplate(f"{{{{ {name}(n=10) }}}}", {}).render([])


def test_a_template_that_takes_too_long_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.text.budget.MAX_SECONDS", -1.0)
    with pytest.raises(ArtifactError, match="it takes too long"):
        ChatTemplate("{% for m in messages %}x{% endfor %}", {}).render([{"role": "user", "content": "x"}])


def test_a_starved_template_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that keep the cores busy for seconds are no reason to answer 500."""
    charge = Budget.charge_steps

    def starved(budget: Budget, count: int = 1) -> None:
        time.sleep(0.3)
        charge(budget, count)

    monkeypatch.setattr("server.text.budget.MAX_SECONDS", 0.2)
    monkeypatch.setattr(Budget, "charge_steps", starved)
    rendered = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}", {}).render(
        [{"role": "user", "content": "x"}]
    )
    assert rendered == "x"


def test_common_template_features_work() -> None:
    template = (
        "{%- set ns = namespace(n=0) -%}{{ bos_token }}{% for m in messages %}{% if loop.index > 2 %}{% break %}"
        "{% endif %}{% set ns.n = ns.n + 2 * 3 %}{% generation %}{{ m | tojson }}{% endgeneration %}{% endfor %}"
        "{{ ns.n }}{% for i in range(3) %}{{ i }}{% endfor %}{{ strftime_now('%Y') | length }}"
        "{{ messages | map(attribute='role') | join(', ') }}{{ ['a', 'b'] | join }}{{ 'a' ~ 1 ~ none }}"
        "{{ 'ab'.replace('b', 'c') }}"
        "{{ ', '.join(['x', 'y']) }}{{ (messages + messages) | length }}{{ 7 % 4 }}{{ ' z ' | trim }}"
    )
    messages = [{"role": "user", "content": "<é>"}] * 3
    text = ChatTemplate(template, {"bos_token": "<s>"}).render(messages)
    assert text == "<s>" + '{"role": "user", "content": "<é>"}' * 2 + "120124user, user, useraba1Noneacx, y63z"


def test_the_date_and_the_reply_are_the_callers() -> None:
    source = "{{ strftime_now('%d.%m.%Y') }}{% if add_generation_prompt %}: {% endif %}"
    template = ChatTemplate(source, {}, lambda: datetime(2024, 2, 29))
    assert template.render([]) == "29.02.2024: "
    assert template.render([], reply=False) == "29.02.2024"
