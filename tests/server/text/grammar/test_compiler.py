"""Compiling: what is refused names the reason, and no grammar of hostile size takes long or ends the process."""

import asyncio
import json
import threading
from typing import Any

import pytest

from server.errors import InvalidRequest, Overloaded
from server.text.grammar import compiler as module
from server.text.grammar.bounds import MOST_CHARACTERS
from server.text.grammar.compiler import GrammarCompiler
from server.text.grammar.grammar import Grammar, Kind, json_rule
from server.text.tokenizer_files import TokenizerFiles


def schema(value: Any) -> Grammar:
    return Grammar("json_schema", json.dumps(value))


def refused(compiler: GrammarCompiler, grammar: Grammar) -> str:
    with pytest.raises(InvalidRequest) as caught:
        asyncio.run(compiler.compile(grammar))
    assert caught.value.param == grammar.field
    assert "\n" not in caught.value.message
    return caught.value.message


def chain(item: Any, count: int) -> dict[str, Any]:
    """`count` definitions, each within the one before."""
    definitions = {f"{n:x}": item({"$ref": f"#/{n + 1:x}"}) for n in range(count)}
    return {"$ref": "#/0", **definitions, f"{count:x}": {}}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"not": {"type": "string"}}, "not"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "array", "contains": {}}, "contains"),
        ({"if": {"type": "string"}, "then": {"minLength": 3}}, "if"),
        ({"type": "string", "format": "credit-card"}, "credit-card"),
        ({"type": "string", "pattern": "^(?=a)b"}, "look-around"),
        ({"type": "string", "pattern": r"^(a)\1$"}, "backreferences"),
        ({"$ref": "http://127.0.0.1:9/x.json"}, "never fetched"),
        ({"$ref": "file:///etc/passwd"}, "never fetched"),
        ({"$ref": "#"}, "no text matches"),
        ({"type": "nope"}, "nope"),
        ({"oneOf": [{"type": "string"}, {"minLength": 2}]}, "anyOf"),
        ({"type": "string", "minLength": 5, "maxLength": 3}, "minLength"),
        ({"not": {}, "x-guidance": {"lenient": True}}, "not"),
    ],
)
def test_what_is_not_supported_is_named(value: Any, named: str, compiler: GrammarCompiler) -> None:
    assert named in refused(compiler, schema(value))


@pytest.mark.parametrize(
    ("grammar", "named"),
    [
        (Grammar("json_schema", '{"type":'), "not JSON"),
        (Grammar("json_schema", "true"), "an object"),
        (Grammar("json_schema", " " * MOST_CHARACTERS + "{}"), "65536"),
        (Grammar("json_schema", '{"a":' * 70 + "1" + "}" * 70), "64 deep"),
        (Grammar("json_schema", '{"a":' * 9000 + "1" + "}" * 9000), "64 deep"),
        (Grammar("json_schema", '{"minItems": 1000000000}'), "minItems"),
        (Grammar("json_schema", '{"multipleOf": 999983}'), "multipleOf"),
        (Grammar("json_schema", json.dumps({"patternProperties": {f"^{n}$": {} for n in range(65)}})), "patternProp"),
        (Grammar("json_schema", '{"pattern": "a{99999}"}'), "4096"),
        (Grammar("regex", "a{1,99999}"), "4096"),
        (Grammar("regex", "(a"), "unclosed group"),
        (Grammar("choice", "[]"), "non-empty"),
        (Grammar("choice", '["a", 1]'), "string"),
        (Grammar("choice", '["\\ud800"]'), "Unicode"),
        (Grammar("lark", "start: A"), "A"),
        (Grammar("lark", 'start: "a"~1..99999'), "4096"),
        (Grammar("lark", "start: x\nx[temperature=0.5]: /a/"), "temperature"),
        (Grammar("lark", 'start: %json {"multipleOf": 999983}'), "multipleOf"),
        (Grammar("lark", "%import .secret\nstart: secret"), "secret"),
    ],
)
def test_a_grammar_beyond_the_bounds_is_refused(grammar: Grammar, named: str, compiler: GrammarCompiler) -> None:
    assert named in refused(compiler, grammar)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_object", ""),
        ("regex", r"[0-9]{3}-\w+"),
        ("choice", '["a/b", "<|im_end|>", "\\u0001 \\u00e4 \\ud83d\\ude00"]'),
        ("lark", 'start: "a" b\nb: /[0-9]+/'),
        ("lark", 'root ::= "a" [0-9]+'),
        ("lark", "start: " + json_rule({"type": "object", "properties": {"a": {"type": "string"}}})),
    ],
)
def test_every_kind_compiles(kind: Kind, text: str, compiler: GrammarCompiler) -> None:
    state = asyncio.run(compiler.compile(Grammar(kind, text))).begin()
    assert not state.failure
    assert state.masks(())[0].any()


@pytest.mark.slow
@pytest.mark.parametrize(
    "item",
    [
        lambda below: {"properties": {"a": below}},
        lambda below: {"allOf": [below]},
        lambda below: {"anyOf": [below, {}]},
        lambda below: {"items": below},
        lambda below: {"prefixItems": [below]},
        lambda below: {"patternProperties": {"x": below}},
        lambda below: below,
    ],
)
def test_the_longest_chains_of_references_do_not_exhaust_the_stack(item: Any, compiler: GrammarCompiler) -> None:
    """In a thread of the usual 8 MB, llguidance ends the process from about 700 properties on."""
    count = MOST_CHARACTERS // len(json.dumps(chain(item, 1000))) * 1000
    while len(json.dumps(chain(item, count + 100))) < MOST_CHARACTERS:
        count += 100
    try:
        state = asyncio.run(compiler.compile(schema(chain(item, count)))).begin()
    except InvalidRequest:
        return
    state.masks(())


@pytest.mark.slow
@pytest.mark.parametrize("line", ["r{0:x}:r{1:x}", "R{0:x}:R{1:x}|/b/"])
def test_the_longest_chains_of_rules_do_not_exhaust_the_stack(line: str, compiler: GrammarCompiler) -> None:
    rules = [line.format(n, n + 1) for n in range(5000)]
    letter = line[0]
    text = f'start:{letter}0\n{letter}{{:x}}:"a"\n'
    while len("\n".join(rules)) + 60 > MOST_CHARACTERS:
        rules.pop()
    try:
        state = asyncio.run(compiler.compile(Grammar("lark", text.format(len(rules)) + "\n".join(rules)))).begin()
    except InvalidRequest:
        return
    state.masks(())


def test_the_event_loop_goes_on_while_a_grammar_compiles(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = threading.Event()

    def slow(*_: object) -> None:
        assert compiled.wait(60)

    async def main() -> None:
        compiling = asyncio.create_task(compiler.compile(Grammar("json_object")))
        await asyncio.sleep(0)
        assert not compiling.done()
        compiled.set()  # the loop is free to do so
        assert await compiling is None

    monkeypatch.setattr(compiler, "_compile", slow)
    asyncio.run(main())


def test_a_queue_that_takes_too_long_is_said_to_be_busy(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = threading.Event()
    monkeypatch.setattr(module, "PATIENCE", 0.01)
    monkeypatch.setattr(compiler, "_compile", lambda _: free.wait(60))
    try:
        with pytest.raises(Overloaded, match="being compiled"):
            asyncio.run(compiler.compile(Grammar("json_object")))
    finally:
        free.set()


def test_a_tokenizer_that_cannot_be_constrained_says_why(byte_compiler: GrammarCompiler) -> None:
    assert byte_compiler.unsupported() is None
    files = TokenizerFiles(b'{"model": 3}', None, {}, {}, frozenset(), None)  # type: ignore[arg-type]
    broken = GrammarCompiler(files)
    assert broken.unsupported()
    with pytest.raises(InvalidRequest, match="cannot be constrained"):
        asyncio.run(broken.compile(Grammar("json_object")))
