"""`make bench-structured SCHEMAS=FOLDER`: a sample of the JSON schemas in a folder, on a real model and server.

JSONSchemaBench (https://github.com/guidance-ai/jsonschemabench) has such folders, `data/` and `maskbench/data/`. Each
schema gets one reply, judged by another library; the first ones also get, in turn, a free text of as many tokens.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jsonschema
from msgspec import Struct
from openai import APIStatusError, OpenAI

from tests.benchmarks.serving.servers import KEY, Setting, ours

MOST_TOKENS = 256
CLIENTS = 4
"""Concurrent requests, where they are not timed."""
SKILL = "plain"
ASK = "Write one example of {title}."


class Result(Struct):
    """What became of one schema."""

    state: Literal["refused", "cut", "valid", "invalid"]
    why: str = ""
    """The reason of a refusal, or what does not match."""
    tokens: int = 0
    seconds: float = 0.0
    free_seconds: float = 0.0
    """Of a free text of as many tokens; 0 where none was asked for."""


def sample(folder: Path, count: int) -> Iterator[tuple[str, Any]]:
    """Names and schemas of `count` files, evenly over the sorted names; MaskBench keeps them under `schema`."""
    paths = sorted(folder.rglob("*.json"))
    for path in paths[:: max(1, len(paths) // count)][:count]:
        content = json.loads(path.read_text())
        yield path.name, content.get("schema", content) if "meta" in content else content


def measure(client: OpenAI, schema: Any, *, timed: bool) -> Result:
    """One reply to a schema and, if `timed`, one free text of its length."""
    title = schema.get("title") if isinstance(schema, dict) else None
    ask: list[Any] = [{"role": "user", "content": ASK.format(title=title or "such a record")}]
    wanted: Any = {"type": "json_schema", "json_schema": {"name": "sample", "schema": schema}}
    options: Any = {"model": SKILL, "messages": ask, "temperature": 0.7, "seed": 1}
    started = time.perf_counter()
    try:
        reply = client.chat.completions.create(**options, max_tokens=MOST_TOKENS, response_format=wanted)
    except APIStatusError as error:
        return Result("refused", str((error.body or {}).get("message", error)) if isinstance(error.body, dict) else "")
    result = judged(schema, reply.choices[0].message.content or "", reply.choices[0].finish_reason)
    result.seconds = time.perf_counter() - started
    result.tokens = reply.usage.completion_tokens if reply.usage else 0
    if not timed:
        return result
    started = time.perf_counter()
    free = {"ignore_eos": True}
    client.chat.completions.create(**options, max_tokens=max(1, result.tokens), extra_body=free)
    result.free_seconds = time.perf_counter() - started
    return result


def judged(schema: Any, text: str, finish: str) -> Result:
    """Whether a reply is whole, and matches by the library `jsonschema`, formats included."""
    if finish == "length":
        return Result("cut")
    try:
        kind = jsonschema.validators.validator_for(schema, default=jsonschema.Draft202012Validator)
        kind(schema, format_checker=kind.FORMAT_CHECKER).validate(json.loads(text))
    except (ValueError, jsonschema.ValidationError) as error:
        return Result("invalid", str(error).partition("\n")[0])
    return Result("valid")


def report(results: Sequence[Result]) -> int:
    """Print the shares and speeds; returns 1 if a whole reply does not match."""
    states = Counter(result.state for result in results)
    compiled = [result for result in results if result.state != "refused"]
    whole = states["valid"] + states["invalid"]
    timed = [result for result in compiled if result.free_seconds]
    tokens = sum(result.tokens for result in timed)
    seconds, free = sum(result.seconds for result in timed), sum(result.free_seconds for result in timed)
    print(f"schemas that compile            {len(compiled)} of {len(results)} ({len(compiled) / len(results):.1%})")
    print(f"whole replies that are valid    {states['valid']} of {whole}; {states['cut']} cut at {MOST_TOKENS} tokens")
    print(f"tokens a second, constrained    {tokens / seconds:.0f} ({tokens} tokens, one stream, compiling included)")
    print(f"tokens a second, free text      {tokens / free:.0f} (as many tokens, in turns)")
    reasons = Counter(result.why.partition(" is not supported: ")[2] or result.why for result in results if result.why)
    for why, count in reasons.most_common(8):
        print(f"{count:>6}  {why[:110]}")
    return int(states["invalid"] > 0)


def main(argv: Sequence[str]) -> int:
    """Measure and print; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.structured", description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("schemas", type=Path, help="a folder of JSON schemas")
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--timed", type=int, default=60, help="how many of them are timed, one after the other")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="secateur-bench-") as folder:
        setting = Setting(arguments.artifact, "0", Path(folder), context=2048)
        with ours(setting, {SKILL: "You write data."}) as target:
            client = OpenAI(base_url=f"http://127.0.0.1:{target.port}/v1", api_key=KEY, max_retries=0)
            names, schemas = zip(*sample(arguments.schemas, arguments.count), strict=True)
            results = [measure(client, schema, timed=True) for schema in schemas[: arguments.timed]]
            with ThreadPoolExecutor(CLIENTS) as pool:
                results += pool.map(partial(measure, client, timed=False), schemas[arguments.timed :])
    for name, result in zip(names, results, strict=True):
        if result.state == "invalid":
            print(f"INVALID {name}: {result.why[:200]}")
    return report(results)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
