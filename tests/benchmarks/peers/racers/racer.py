"""The racers' protocol, one line of JSON each way; standard library only, since it runs in any environment.

A request is {"batch": prompts at once, "prompt": tokens of each, "tokens": new tokens for each}; the answer is
{"seconds": wall time until the last token, "cpu_seconds": of the process and its children}. A racer sleeps while it
waits for a line.
"""

import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable

Ids = list[int]
Generate = Callable[[list[Ids], int], float | None]
"""`(prompts, tokens)`: decode `tokens` new ids for each prompt, greedily and past any stop id.

Returns the CPU seconds that do not count, such as for loading the model."""

LOWEST, HIGHEST = 100, 24000
"""Ids of ordinary tokens in every vocabulary that races, from which prompts are drawn."""


def race(generate: Generate) -> None:
    """Answer requests until standard input ends; each prompt is drawn anew, so that no prefix cache holds it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library's prints must not be read as an answer
    draw = random.Random(os.getpid())
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [[draw.randrange(LOWEST, HIGHEST) for _ in range(asked["prompt"])] for _ in range(asked["batch"])]
        begin, cpu_begin = time.perf_counter(), cpu_seconds()
        left_out = generate(prompts, asked["tokens"]) or 0
        seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu_begin - left_out
        answers.write(json.dumps({"seconds": seconds, "cpu_seconds": cpu}) + "\n")
        answers.flush()


def cpu_seconds() -> float:
    """CPU seconds of this process and of its finished children so far."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
