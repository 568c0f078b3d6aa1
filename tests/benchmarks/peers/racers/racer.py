"""What every racer is told and answers: one line of JSON each; only the standard library, as it runs in any venv.

A line asks {"batch": prompts at once, "prompt": tokens of each, "tokens": new tokens for each}; the answer is
{"seconds": wall time until the last token}. A racer sleeps while it waits for a line.
"""

import json
import os
import random
import sys
import time
from collections.abc import Callable

Ids = list[int]
Generate = Callable[[list[Ids], int], None]
"""Makes so many new tokens, greedily and past any end, for each prompt of a batch."""

LOWEST, HIGHEST = 100, 40000
"""Ids that are ordinary tokens of the model's vocabulary."""


def race(generate: Generate) -> None:
    """Answer lines until there are no more; every prompt is drawn anew, so that no cache has it."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # libraries that print must not be taken for an answer
    draw = random.Random(os.getpid())
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = [[draw.randrange(LOWEST, HIGHEST) for _ in range(asked["prompt"])] for _ in range(asked["batch"])]
        begin = time.perf_counter()
        generate(prompts, asked["tokens"])
        answers.write(json.dumps({"seconds": time.perf_counter() - begin}) + "\n")
        answers.flush()
