"""Hostile templates that would fill the memory or never end, run in a process with limits on both."""

import json
import subprocess
import sys

import pytest

from server.text.chat_template import ChatTemplate

# What each makes is far beyond what a process may have or could do in a minute; `c` is 60,000 characters.
HOSTILE = {
    "bytes": "{{ 'a'.encode().center(2000000000)|length }}",
    "bytes of a number": "{{ (1).to_bytes(2000000000, 'big')|length }}",
    "list of lists, as JSON": "{% for i in r %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a|tojson }}",
    "list of lists, written": "{% for i in r %}{% set n.a = [n.a, n.a] %}{% endfor %}{{ n.a }}",
    "list of lists, compared": "{% for i in r %}{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}"
    "{{ n.a == n.b }}",
    "tuple of tuples, hashed": "{% for i in r %}{% set n.a = (n.a, n.a) %}{% endfor %}{{ {n.a: 1}|length }}",
    "dict of dicts": "{% for i in r %}{% set n.a = dict(a=n.a, b=n.a) %}{% endfor %}{{ n.a|tojson }}",
    "list of itself by adding": "{% for i in r %}{% set n.a = n.a + [n.a] %}{% endfor %}{{ n.a }}",
    "block": "{% set x = c %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 30 + "{{ x|length }}",
    "macro": "{% macro m(x) %}{{ x }}{{ x }}{% endmacro %}{% for i in r %}{% set n.a = m(n.a) %}{% endfor %}{{ n.a }}",
    "filter block": "{% for i in r %}{% set y %}{% filter upper %}{{ n.a }}{{ n.a }}{% endfilter %}{% endset %}"
    "{% set n.a = y %}{% endfor %}",
    "loop in a block": "{% set x %}{% for i in range(290000) %}"
    + "c" * 9000
    + "{% endfor %}{% endset %}{{ x|length }}",
    "power in a filter": "{{ 1|round(300000000, 'floor') }}",
    "straight line": "{% set l = range(290000)|list %}" + "{% set y = l|sort %}" * 9000,
    "straight line of comparisons": "{% set l = range(290000)|list %}" + "{% if l[:] == l[:] %}{% endif %}" * 6000,
    "sum of lists": "{{ c|map('list')|sum(start=[])|length }}",
    "keys": "{{ dict.fromkeys(range(200000), c)|tojson }}",
    "defaults": "{{ range(200000)|map(attribute='z', default=c)|list|string }}",
    "replace by name": "{{ c|replace(old='a', new=c)|length }}",
    "replace by list": "{{ c|replace(*['a', c])|length }}",
    "replace in map": "{{ [c]|map('replace', 'a', c)|list|length }}",
    "replace in a block": "{% filter replace('a', c) %}{{ c }}{% endfilter %}",
    "replace of a block": "{% set x | replace('a', c) %}{{ c }}{% endset %}",
    "join of attributes": "{{ range(200000)|map('string')|join(c) }}",
    "test in a filter": "{% set l = c|list %}{{ range(100000)|select('in', l)|list|length }}",
    "indent": "{% set n.a = range(90000)|list %}{% for i in r %}"
    "{% set n.a = [n.a] %}{% endfor %}{{ n.a|tojson(indent=16) }}",
    "escapes": "{% set n.a = c|replace('a', '&') %}"
    "{% for i in range(20000) %}{% set n.a = n.a|forceescape %}{% endfor %}",
    "slices": "{% for i in range(20000) %}{% set n.a = [c[i:], n.a] %}{% endfor %}",
    "namespaces": "{% for i in r %}{% set n.a = namespace(a=[n.a, n.a]) %}{% endfor %}{{ [n.a] * 2 }}",
    "recursion": "{% macro m(n) %}{{ m(n + 1) }}{{ m(n + 1) }}{% endmacro %}{{ m(0) }}",
}
SET = "{% set c = messages[0].content %}{% set r = range(60) %}{% set n = namespace(a=[1, 1], b=[1, 1]) %}"
PROGRAM = """
import json, resource, signal, sys
from server.text import budget
from server.text.chat_template import ChatTemplate
from server.errors import ArtifactError
budget.MAX_SECONDS = 0.5
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
for name, template in json.load(sys.stdin).items():
    signal.alarm(120)
    try:
        ended = ChatTemplate(template, {}).render([{"role": "user", "content": "a" * 60000}])[:60]
    except ArtifactError as error:
        ended = str(error)
    peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) >> 10
    print(json.dumps([name, ended, peak]), flush=True)
"""


@pytest.mark.slow
def test_each_hostile_template_ends_in_one_sentence_with_little_memory() -> None:
    templates = json.dumps({name: SET + template for name, template in HOSTILE.items()})
    run = subprocess.run([sys.executable, "-c", PROGRAM], input=templates, capture_output=True, text=True, check=False)
    ended = {name: (text, peak) for name, text, peak in map(json.loads, run.stdout.splitlines())}
    assert list(ended) == list(HOSTILE), run.stderr
    for name, (text, peak) in ended.items():
        assert text.startswith("The chat template failed: "), name
        assert "MemoryError" not in text, name
        assert peak < 300, name


def test_an_oversized_template_is_refused_before_parsing() -> None:
    with pytest.raises(Exception, match="more than 262144 characters"):
        ChatTemplate("{{ 1 }}" * 100_000, {})


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ [1, [2, 3]] }} {{ {'a': (1, 2)} }}", "[1, [2, 3]] {'a': (1, 2)}"),
        ("{% for a, b in {'x': 1}|items %}{{ a ~ b }}{% endfor %}", "x1"),
        ("{{ [{'a': 'x'}, {'a': 'y'}]|map(attribute='a')|join('-') }}", "x-y"),
        ("{% filter upper %}a{{ 'b'|replace('b', 'c') }}{% endfilter %}", "AC"),
        ("{{ [3, 1]|sort|first }}{{ [1, 2]|sum }}{{ 2.55|round(1) }}{{ 'a'|e }}", "132.5a"),
        ("{{ 'a' in ['a', 'b'] and messages[:1] == messages }}", "True"),
        ("{{ messages|selectattr('role', 'equalto', 'user')|list|length }}", "1"),
        ("{{ messages|tojson(indent=1) }}", '[\n {\n  "role": "user",\n  "content": "hi"\n }\n]'),
        (
            "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m] %}{% endfor %}{{ ns.l }}",
            "[{'role': 'user', 'content': 'hi'}]",
        ),
        ("{{ 'a</think>b'.split('</think>')[-1].lstrip('\n') }}{{ messages[::-1]|length }}", "b1"),
        ("{{ namespace(a=1) }}{{ nothing is defined }}", "<namespace>False"),
    ],
)
def test_harmless_templates_render_as_in_jinja(template: str, expected: str) -> None:
    assert ChatTemplate(template, {}).render([{"role": "user", "content": "hi"}]) == expected


def test_a_long_conversation_is_within_the_bounds() -> None:
    copied = (
        "{% set ns = namespace(l=[]) %}{% for m in messages %}{% set ns.l = ns.l + [m] %}{% endfor %}"
        "{% macro one(m) %}{{ m.role ~ ': ' ~ m.content|trim }}\n{% endmacro %}"
        "{% for m in ns.l %}{% set text %}{{ one(m) }}{% endset %}{{ text }}{% endfor %}"
    )
    chat = [{"role": "user", "content": "word " * 60}] * 400
    assert ChatTemplate(copied, {}).render(chat).count("user: word") == 400
