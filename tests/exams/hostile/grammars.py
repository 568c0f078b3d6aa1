"""Grammars made to take a server's time, memory or process, beside honest chats.

`python -m tests.exams.hostile.grammars` prints its rows; the exit code is 1 if one does not hold.
"""

import http.client
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tests.exams.client import Server, serving
from tests.exams.hostile.peers import ASK, percentile, resident, seconds_of
from tests.exams.row import Row, show
from tests.support.harness import KEY

SECONDS = 5.0
"""For each answer, also on a busy machine; most take milliseconds."""
MEGABYTES = 200.0
"""By which the process may grow, over all of them."""
TOKENS = 40
Fields = Mapping[str, Any]


def nested(depth: int) -> Any:
    """An object in an object, `depth` times."""
    inner: Any = {"type": "string"}
    for _ in range(depth):
        inner = {"type": "object", "properties": {"a": inner}, "required": ["a"]}
    return inner


def chain(item: Callable[[Any], Any], count: int) -> Any:
    """`count` definitions, each within the one before."""
    made = {f"{n:x}": item({"$ref": f"#/{n + 1:x}"}) for n in range(count)}
    return {"$ref": "#/0", **made, f"{count:x}": {"type": "object"}}


def exponential(keyword: str) -> Any:
    """Definitions that each name the next one twice."""
    made = {f"d{n}": {keyword: [{"$ref": f"#/$defs/d{n + 1}"}] * 2} for n in range(30)}
    return {"$ref": "#/$defs/d0", "$defs": {**made, "d30": {"type": "object"}}}


def alternatives(keyword: str, count: int) -> Any:
    """An intersection of `count` unions of four."""
    unions = [{keyword: [{"properties": {f"k{n}": {"const": m}}} for m in range(4)]} for n in range(count)]
    return {"allOf": unions}


def rules(line: str, count: int) -> str:
    """A Lark grammar of `count` rules, each of which names the next."""
    return "start: r0\n" + "\n".join(line.format(n, n + 1) for n in range(count)) + f'\nr{count}: "a"'


def schemas() -> Iterator[tuple[str, Any, bool]]:
    """Names of JSON schemas, the schemas, and whether they must be refused."""
    words = {"type": "string"}
    yield "nested 5,000 deep", '{"items":' * 5000 + "{}" + "}" * 5000, True
    yield "nested 60 deep", nested(60), True
    yield "a chain of 1,500 properties", chain(lambda below: {"properties": {"a": below}}, 1500), True
    yield "a chain of 1,200 properties", chain(lambda below: {"properties": {"a": below}}, 1200), False
    yield "a chain of 1,700 intersections", chain(lambda below: {"allOf": [below]}, 1700), False
    yield "a chain of 2,500 references", chain(lambda below: below, 2500), False
    yield "a reference to itself", {"$ref": "#"}, True
    yield "two references in a circle", {"$ref": "#/a", "a": {"$ref": "#/b"}, "b": {"$ref": "#/a"}}, True
    yield "an intersection with itself", {"allOf": [{"$ref": "#"}, {"type": "object"}]}, True
    yield "a reference to a host", {"$ref": "http://127.0.0.1:9/schema.json"}, True
    yield "a reference to a file", {"$ref": "file:///etc/passwd"}, True
    yield "an enum of 200,000", {"enum": [f"value {n}" for n in range(20_000)]}, True
    yield "an enum of 4,000", {"enum": [f"value {n}" for n in range(4000)]}, False
    yield "10 MB of properties", {"properties": {f"p{n}": words for n in range(30_000)}}, True
    yield "2,000 optional properties", {"type": "object", "properties": {f"p{n}": words for n in range(2000)}}, False
    yield "a constant of 60,000 characters", {"const": "x" * 60_000}, True
    yield "a billion items", {"type": "array", "minItems": 10**9}, True
    yield "a billion characters", {"type": "string", "minLength": 10**9}, True
    yield "4,000 constant items", {"type": "array", "minItems": 4000, "items": {"const": "xxxxxxxx"}}, False
    yield "items of items of items", {"minItems": 4000, "items": {"minItems": 4000, "items": {"minItems": 9}}}, False
    yield "intersections that double", exponential("allOf"), False
    yield "unions that double", exponential("anyOf"), False
    yield "an intersection of 16 unions", alternatives("anyOf", 16), True
    yield "an intersection of 16 choices", alternatives("oneOf", 16), True
    yield "a large multiple", {"type": "integer", "multipleOf": 999_983}, True
    yield "many multiples", {"prefixItems": [{"type": "integer", "multipleOf": 9973 - n} for n in range(200)]}, True
    yield "a multiple of 19,997", {"type": "integer", "multipleOf": 19_997}, False
    yield "300 patterns of keys", {"patternProperties": {f"^a{n}.*b{n}$": {} for n in range(300)}}, True
    yield "60 patterns of keys", {"patternProperties": {f"^{n}.*b{n % 7}$": {} for n in range(60)}}, False
    yield "numbers of 300 digits", {"type": "integer", "minimum": -(10**300), "maximum": 10**300}, True
    yield "400 patterns", {"prefixItems": [{"pattern": f"(a|b)*a(a|b){{{n}}}"} for n in range(400)]}, False


def patterns() -> Iterator[tuple[str, Any, bool]]:
    """Likewise for schemas of one pattern."""
    for pattern, refused in (
        ("^(a+)+$", False),
        ("^(a|a)*b(a|a)*(a?){100}a{100}$", False),
        ("(a|b)*a(a|b){200}", False),
        ("^((a{1000}){1000}){1000}$", True),
        ("^(((x{0,99}){0,99}){0,99}){0,99}$", False),
        (r"^(\p{L}{1,500}\p{N}{1,500}){1,500}$", False),
        ("a{100000}", True),
    ):
        yield f"the pattern {pattern}", {"type": "string", "pattern": pattern}, refused


def grammars() -> Iterator[tuple[str, Fields, bool]]:
    """Names of grammars, the fields that ask for them, and whether they must be refused."""
    for name, schema, refused in (*schemas(), *patterns()):
        yield name, {"guided_json": schema}, refused
    for name, regex, refused in (
        ("20,000 parentheses", "(" * 20_000 + "a" + ")" * 20_000, True),
        ("a regex of 5,000 words", "|".join(f"w{n}[a-z]*" for n in range(4000)), False),
        ("repeated repeats", "(.{1,1000}){1,1000}", False),
        ("a regex of 40 distances", "|".join(f".*a.{{{n}}}" for n in range(40)), False),
    ):
        yield name, {"guided_regex": regex}, refused
    for name, lark, refused in (
        ("a chain of 4,000 rules", rules('r{0}:r{1}|"b"', 4000), False),
        ("rules that double", rules("r{0}: r{1} r{1}", 40), True),
        ("tokens that double", rules("R{0}: R{1} R{1}", 40).replace("r", "R").replace("staRt", "start"), True),
        ("30,000 parentheses", "start: " + "(" * 30_000 + '"a"' + ")" * 30_000, True),
        ("an ambiguous grammar", 'start: start start | "a"', False),
        (
            "distances that intersect",
            "start: A\nA: " + " & ".join(f"/.*{c}.{{9}}.*/" for c in "abcdefghijklmnop"),
            False,
        ),
        ("a million repeats", 'start: ("a"{1,1000000}){1,1000000}', True),
        ("an import of a file", "%import .secret\nstart: secret", True),
        ("substrings of a long text", 'start: %regex {"substring_chars": "' + "abcdefgh" * 6000 + '"}', True),
    ):
        yield name, {"guided_grammar": lark}, refused


def ask(url: str, fields: Fields) -> tuple[int, float, str]:
    """Status, seconds and message of a request with `fields`."""
    body = json.dumps({**ASK, "max_tokens": TOKENS, **fields})
    started = time.monotonic()
    try:
        with closing(http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)) as connection:
            connection.request("POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {KEY}"})
            response = connection.getresponse()
            answer = json.loads(response.read())
    except (OSError, http.client.HTTPException) as error:
        return 0, time.monotonic() - started, str(error)
    return response.status, time.monotonic() - started, str(answer.get("error", {}).get("message", ""))


def hostile_grammars(seconds: float = SECONDS) -> list[Row]:
    """Every grammar in turn, and all at once beside honest chats."""
    with tempfile.TemporaryDirectory(prefix="secateur-exam-") as name, serving(Path(name), tokens=8) as server:
        server.ready()
        seconds_of(server.url, 3)
        before = resident(server.process.pid)
        rows = list(_alone(server, seconds))
        rows.append(_beside(server, seconds))
        grown = resident(server.process.pid) - before if server.alive() else 0.0
        rows.append(Row("hostile grammars", f"{grown:.0f} MB more", f"at most {MEGABYTES:.0f} MB", grown <= MEGABYTES))
        rows.append(Row("hostile grammars", f"alive: {server.alive()}", "alive", server.alive()))
    return rows


def _alone(server: Server, seconds: float) -> Iterator[Row]:
    """One row over all answers, and one for each that is wrong."""
    taken, wrong = [], 0
    for name, fields, refused in grammars():
        status, took, message = ask(server.url, fields)
        taken.append(took)
        expected = (400, 413) if refused else (200, 400)
        if status not in expected or took > seconds or (status == 400 and not message):
            wrong += 1
            yield Row(name, f"{status} in {took:.1f} s: {message[:60]}", f"{expected} in {seconds:.0f} s", False)
    figure = f"{len(taken) - wrong} of {len(taken)} answered, the longest in {max(taken):.2f} s"
    yield Row("hostile grammars, one by one", figure, f"400, or a reply, within {seconds:.0f} s", not wrong)


def _beside(server: Server, seconds: float) -> Row:
    """Honest chats while eight clients send the grammars."""
    lists = [[fields for _, fields, _ in grammars()][part::8] for part in range(8)]
    threads = [threading.Thread(target=_send, args=(server.url, fields)) for fields in lists]
    for thread in threads:
        thread.start()
    taken = seconds_of(server.url, 20)
    for thread in threads:
        thread.join()
    figure = f"20 honest chats, p50 {percentile(taken, 0.5):.2f} s, the longest {taken[-1]:.2f} s"
    return Row("chats beside hostile grammars", figure, f"within {seconds:.0f} s", taken[-1] <= seconds)


def _send(url: str, several: list[Fields]) -> None:
    for fields in several:
        ask(url, fields)


def main() -> int:
    """Print the rows."""
    return show(hostile_grammars())


if __name__ == "__main__":
    sys.exit(main())
