"""Random plans and random batches, valid and invalid, for SECATEUR_FUZZ_SECONDS.

A valid batch must have, bit for bit, the logits of each text computed alone; an invalid one must be refused.
"""

import os
import random
import time
from typing import Any

import pytest
import torch

pytest.importorskip("server.engine.native._core")

from server.engine.batch import Batch, Chunk
from server.engine.blocks import BLOCK
from server.engine.native import core
from server.engine.native.plan.decoder import plan_of
from server.engine.runners import Options
from server.engine.runners.native_runner import NativeRunner
from server.engine.sequence import Sampling, Sequence
from tests.server.engine.native.tiny import TYPES, Packed, tiny

pytestmark = pytest.mark.slow

SECONDS = float(os.environ.get("SECATEUR_FUZZ_SECONDS", "5"))
CONTEXT = 3 * BLOCK + 5


def random_runner(generator: random.Random) -> NativeRunner:
    kind = generator.choice(["llama", "mistral", "qwen2", "qwen3", "smollm3", "gemma", "gemma2", "gemma3_text"])
    key_heads = generator.choice((1, 2, 3))
    heads = key_heads * generator.choice((1, 2, 5))
    options: dict[str, Any] = {
        "hidden_size": heads * generator.choice((2, 7, 16)),
        "intermediate_size": generator.randint(1, 150),
        "num_hidden_layers": generator.randint(1, 3),
        "num_attention_heads": heads,
        "num_key_value_heads": key_heads,
        "head_dim": 2 * generator.randint(1, 20),
        "vocab_size": generator.randint(40, 120),
    }
    if kind in ("mistral", "gemma2", "gemma3_text"):
        options["sliding_window"] = generator.randint(1, 2 * BLOCK)
    if kind in ("gemma2", "gemma3_text"):
        options["layer_types"] = [generator.choice(TYPES) for _ in range(options["num_hidden_layers"])]
    how = generator.choice(("bf16", "int8", "int4", "bf16 20:64", "int8 32:64", "int4 24:64", "bf16 any", "int8 any"))
    packed = Packed(tiny(kind, **options), how)
    settings = Options(
        slots=3,
        context=CONTEXT,
        batch_tokens=2 * CONTEXT,
        key_bits=generator.choice((8, 16)),
        threads=generator.choice((1, 2)),
        instructions=generator.choice(core().available()),
    )
    return NativeRunner(packed, plan_of(packed.config, packed.names()), settings)


def random_batch(generator: random.Random, runner: NativeRunner, texts: list[list[int]], done: list[int]) -> Batch:
    """Some ids of some texts; one in four batches is invalid."""
    chunks = []
    for slot, text in enumerate(texts):
        count = min(generator.choice((0, 1, 1, 40)), len(text) - done[slot])
        if count:
            ids = tuple(text[done[slot] : done[slot] + count])
            chunks.append(Chunk(Sequence("", tuple(text), Sampling()), slot, done[slot], ids, True))
    if not chunks or generator.random() > 0.25:
        return Batch(tuple(chunks))
    broken = generator.randrange(len(chunks))
    chunk = chunks[broken]
    wrong = (
        {"ids": (*chunk.ids[1:], generator.choice((-1, runner.vocabulary, 2**31)))},
        {"start": generator.choice((-1, CONTEXT, 2**30))},
        {"slot": generator.choice((-1, 99))},
        {"blocks": (generator.choice((-5, 10**6)),) * 9},
        {"ids": chunk.ids * (2 * CONTEXT + 1)},
    )
    fields = {name: getattr(chunk, name) for name in Chunk.__struct_fields__}
    chunks[broken] = Chunk(**{**fields, **generator.choice(wrong)})
    return Batch(tuple(chunks))


def is_wrong(batch: Batch) -> bool:
    """Whether a chunk differs from its text or has an invalid place."""

    def wrong(chunk: Chunk) -> bool:
        own = tuple(chunk.sequence.tokens[chunk.start : chunk.end]) == chunk.ids
        return not own or bool(chunk.blocks) or not 0 <= chunk.slot < 3

    return any(wrong(chunk) for chunk in batch.chunks)


def play(generator: random.Random, runner: NativeRunner) -> int:
    """Compute a few texts in random chunks; returns the number of refused batches."""
    texts = [[generator.randrange(runner.vocabulary) for _ in range(generator.randint(1, CONTEXT))] for _ in range(3)]
    expected = []
    for text in texts:
        chunk = Chunk(Sequence("", tuple(text), Sampling()), 0, 0, tuple(text), True)
        expected.append(runner.last(Batch((chunk,)), [len(text)]))
    done, refused = [0, 0, 0], 0
    while any(count < len(text) for count, text in zip(done, texts, strict=True)):
        batch = random_batch(generator, runner, texts, done)
        counts = [len(chunk.ids) for chunk in batch.chunks]
        if is_wrong(batch):
            with pytest.raises((ValueError, OverflowError)):
                runner.last(batch, counts)
            refused += 1
            continue
        for chunk, rows in zip(batch.chunks, torch.split(runner.last(batch, counts), counts), strict=True):
            assert torch.equal(rows, expected[chunk.slot][chunk.start : chunk.end])
            done[chunk.slot] = chunk.end
    return refused


def test_random_plans_and_batches() -> None:
    seed = int(os.environ.get("SECATEUR_FUZZ_SEED", "0"))
    end = time.monotonic() + SECONDS
    refused = rounds = 0
    while time.monotonic() < end or rounds < 3:
        generator = random.Random(seed + rounds)
        try:
            runner = random_runner(generator)
            refused += sum(play(generator, runner) for _ in range(3))
        except Exception as error:
            raise AssertionError(f"seed {seed + rounds}") from error
        rounds += 1
    assert refused
