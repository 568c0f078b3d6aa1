"""The state of a reply in its grammar: masks against a search of all texts, forced tokens, guesses, and the end."""

import itertools
import json
import random
import re
from collections.abc import Callable

import jsonschema
import numpy
import pytest
from tokenizers import Tokenizer

from server.text.grammar.grammar import Grammar
from server.text.grammar.matcher import CompiledGrammar, Mask, Matcher
from tests.support.harness import END

Compiled = Callable[[Grammar], CompiledGrammar]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["a", "b"]}, "maxItems": 3},
        "kind": {"anyOf": [{"const": None}, {"type": "boolean"}]},
    },
    "required": ["name", "age", "tags", "kind"],
    "additionalProperties": False,
}
SCHEMA = Grammar("json_schema", json.dumps(PERSON))


def ids(mask: Mask) -> list[int]:
    bits = numpy.unpackbits(mask.view(numpy.uint8), bitorder="little")
    return [int(id) for id in bits.nonzero()[0]]


def end_of(library: Tokenizer) -> int:
    id = library.token_to_id(END)
    assert id is not None
    return id


def walk(state: Matcher, generator: random.Random, end: int) -> list[int]:
    """Random allowed ids up to the end."""
    taken: list[int] = []
    while not state.complete and not (taken and taken[-1] == end) and len(taken) < 300:
        taken.append(generator.choice(ids(state.masks(())[0])))
        state.accept(taken[-1])
        assert not state.failure
    return taken


def test_masks_allow_the_tokens_that_some_text_continues(compiled: Compiled, library: Tokenizer) -> None:
    """Every text of a finite language, spelled in every way that the vocabulary has."""
    pattern = "(ab|a){1,3}c?( name)?"
    language = {text for text in texts(pattern) if re.fullmatch(pattern, text)}
    words = {library.decode([id]): id for id in range(library.get_vocab_size()) if library.decode([id]).isascii()}
    end = end_of(library)
    for prefix in ("", "a", "ab", "abab", "abac", "a name"):
        state = compiled(Grammar("regex", pattern)).begin()
        spelled = library.encode(prefix).ids
        assert state.allowed(spelled) == len(spelled)
        for id in spelled:
            state.accept(id)
        expected = {id for word, id in words.items() if word and any(t.startswith(prefix + word) for t in language)}
        expected |= {end} if prefix in language else set()
        if not state.complete:
            assert set(ids(state.masks(())[0])) == expected, prefix


def texts(pattern: str) -> set[str]:
    """More than the language of the pattern above."""
    stems = {"".join(parts) for n in (1, 2, 3) for parts in itertools.product(("ab", "a"), repeat=n)}
    return {stem + c + name for stem in stems for c in ("", "c") for name in ("", " name")}


@pytest.mark.parametrize("seed", range(15))
def test_random_replies_validate(seed: int, compiled: Compiled, library: Tokenizer) -> None:
    """Judged by another library, and spelled as `json.dumps` does."""
    taken = walk(compiled(SCHEMA).begin(), random.Random(seed), end_of(library))
    text = library.decode(taken)
    jsonschema.validate(json.loads(text), PERSON)
    assert json.loads(text) == json.loads(json.dumps(json.loads(text)))
    assert '": ' in text


def test_a_run_of_forced_tokens_is_the_tokenizers_own_and_is_taken_whole(
    compiled: Compiled, library: Tokenizer
) -> None:
    state = compiled(SCHEMA).begin()
    run: list[int] = []
    while state.forced is not None:
        assert ids(state.masks(())[0]) == [state.forced]
        run.append(state.forced)
        state.accept(state.forced)
    begun = library.decode(run)
    assert len(run) > 1
    assert '{"name": "'.startswith(begun)
    assert library.encode('{"name": "Ann').ids[: len(run)] == run


@pytest.mark.parametrize("seed", range(10))
def test_guesses_leave_the_state_as_it_was(seed: int, compiled: Compiled, library: Tokenizer) -> None:
    """Masks after guesses are those of a reply that really has these tokens; a wrong guess is cut where it is wrong."""
    generator, grammar = random.Random(seed), compiled(SCHEMA)
    taken = walk(grammar.begin(), generator, end_of(library))
    state, position = grammar.begin(), 0
    while position < len(taken):
        guess = taken[position : position + generator.randint(0, 9)]
        wrong = [*guess[:-1], (guess[-1] + 1) % 300, 5] if guess else [end_of(library)]
        right = state.allowed(guess)
        assert state.allowed(wrong) >= len(guess) - 1
        masks = state.masks(guess[:right])
        assert right == len(guess) or guess[right] == end_of(library)
        for number, mask in enumerate(masks):
            assert ids(mask) == ids(state.masks(())[0])
            if position + number < len(taken):
                forced = state.forced
                state.accept(taken[position + number])
                assert forced in (None, taken[position + number])
        position += len(masks)
    assert state.complete


def test_nothing_is_guessed_beyond_an_end(compiled: Compiled, library: Tokenizer) -> None:
    state = compiled(Grammar("regex", "a+")).begin()
    a, end = library.encode("a").ids[0], end_of(library)
    assert state.allowed([a, end, a]) == 1
    state.accept(a)
    assert end in ids(state.masks(())[0])
    assert not state.complete


def test_a_grammar_is_complete_when_nothing_may_follow(compiled: Compiled, library: Tokenizer) -> None:
    state = compiled(Grammar("choice", json.dumps(["yes", "no"]))).begin()
    for id in library.encode("no").ids:
        assert not state.complete
        state.accept(id)
    assert state.complete


def test_states_of_one_grammar_are_independent(compiled: Compiled, library: Tokenizer) -> None:
    grammar = compiled(SCHEMA)
    first, second = grammar.begin(), grammar.begin()
    walk(first, random.Random(1), end_of(library))
    assert first.complete
    assert not second.complete
    assert second.forced == grammar.begin().forced


def test_a_failure_within_the_reply_is_an_error_of_the_request(compiled: Compiled, library: Tokenizer) -> None:
    """`{` is allowed before 2,000 optional properties, and too many may follow."""
    schema = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(2000)}}
    state = compiled(Grammar("json_schema", json.dumps(schema), "guided_json")).begin()
    state.accept(library.encode("{").ids[0])
    state.masks(())
    assert "alternatives" in state.failure
    assert state.error.param == "guided_json"
    assert state.error.status == 400


def test_the_states_of_a_regular_expression_are_bounded(
    compiled: Compiled, library: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each letter that may be the last `a` doubles what must be remembered."""
    monkeypatch.setattr("server.text.grammar.compiler.STATES", 500)
    state = compiled(Grammar("regex", "([a-z ])*a[a-z ]{30}b[a-z ]{25}")).begin()
    generator, end = random.Random(4), end_of(library)
    for _ in range(200):
        (mask,) = state.masks(())
        if state.failure:
            break
        state.accept(generator.choice([id for id in ids(mask) if id != end]))
    assert state.failure == "its regular expressions are too complex"


@pytest.mark.parametrize(
    "grammar",
    [
        SCHEMA,
        Grammar("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'),
        Grammar("json_object"),
        Grammar("regex", "[a-c]+/x|a\\/b\\.\n+"),
        Grammar("choice", '["red", "light blue", "a/b", "\\"q\\"", "gr\u00fcn"]'),
        Grammar("lark", 'start: "a" | "b" start'),
        Grammar("lark", 'root ::= "a" | "b" root'),
    ],
)
def test_the_grammar_as_lark_allows_the_same_tokens(grammar: Grammar, compiled: Compiled, library: Tokenizer) -> None:
    own = compiled(grammar)
    there = compiled(Grammar("lark", own.lark))
    generator, end = random.Random(5), end_of(library)
    for _ in range(6):
        first, second = own.begin(), there.begin()
        while not first.complete:
            allowed = ids(first.masks(())[0])
            assert allowed == ids(second.masks(())[0])
            taken = generator.choice(allowed)
            if taken == end:
                break
            first.accept(taken)
            second.accept(taken)
        assert first.complete == second.complete


def test_a_forced_text_may_come_in_other_tokens(compiled: Compiled, library: Tokenizer) -> None:
    """Engines elsewhere sample what the grammar allows, in any division."""
    state = compiled(Grammar("choice", '["name"]')).begin()
    letters = [library.token_to_id(letter) for letter in "name"]
    assert state.forced not in (None, letters[0])
    for id in letters:
        assert id is not None
        assert not state.fits(library.token_to_id("x") or 0)
        assert state.fits(id)
        state.accept(id)
    assert state.complete
