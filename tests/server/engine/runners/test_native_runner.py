"""The native runner against transformers' float32 logits, and against itself in other batches."""

import random
from typing import Any

import pytest
import torch

pytest.importorskip("server.engine.native._core")

from server.engine.batch import Batch, Chunk
from server.engine.native import core
from server.engine.native.plan.decoder import plan_of
from server.engine.runners import Options
from server.engine.runners.native_runner import NativeRunner
from server.engine.sampling.reference import sample
from server.engine.scheduling.scheduler import Scheduler
from server.engine.sequence import Sampling, Sequence
from server.errors import ArtifactError, ConfigError
from tests.server.engine.native.tiny import MODELS, Packed, own_logits, tiny

IDS = [(7 * index * index + 3 * index) % 31 for index in range(100)]
# bf16 rounds each input by at most 1/512 of itself, int8 by 1/254 of the largest of 64, which is about 2.4 deviations
# for Gaussian values: 0.1 % and 0.6 % of error (root mean square) a product, of which 15 add up here.
TOLERANCES = {"bf16": 0.015, "int8": 0.045, "int4": 0.045}
LAYOUTS = ["int8", "int4", "bf16 32:64", "bf16 17:64", "int8 32:64", "int4 24:64", "bf16 any", "int8 any"]


def runner_of(packed: Packed, *, slots: int = 4, context: int = 128, **options: Any) -> NativeRunner:
    plan = plan_of(packed.config, packed.names())
    return NativeRunner(packed, plan, Options(slots=slots, context=context, batch_tokens=128, **options))


def whole(runner: NativeRunner, ids: list[int], slot: int = 0) -> torch.Tensor:
    """Logits of every id of a text, computed at once."""
    chunk = Chunk(Sequence("", tuple(ids), Sampling()), slot, 0, tuple(ids), True)
    return runner.last(Batch((chunk,)), [len(ids)])


def error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """Relative error, as a norm over all logits."""
    return float((got - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", MODELS)
def test_every_family_gives_the_logits_of_transformers(name: str) -> None:
    model = tiny(name)
    packed = Packed(model)
    assert error(whole(runner_of(packed), IDS), own_logits(model, IDS)) < TOLERANCES["bf16"]


@pytest.mark.parametrize("how", LAYOUTS)
@pytest.mark.parametrize("name", ["llama", "llama, odd", "gemma3_text"])
def test_every_layout_gives_the_logits_of_its_unpacked_weights(name: str, how: str) -> None:
    model = tiny(name)
    packed = Packed(model, how)
    assert error(whole(runner_of(packed), IDS), own_logits(model, IDS)) < TOLERANCES[how.split()[0]]


@pytest.mark.parametrize("instructions", core().available())
@pytest.mark.parametrize("how", ["bf16", "bf16 20:64", "int4 32:64"])
def test_every_instruction_set_gives_the_same_logits(how: str, instructions: str) -> None:
    model = tiny("gemma2")
    packed = Packed(model, how)
    runner = runner_of(packed, instructions=instructions)
    assert {choice.subject: choice.value for choice in runner.choices}["instructions"] == instructions
    assert error(whole(runner, IDS), own_logits(model, IDS)) < TOLERANCES[how.split()[0]]


@pytest.mark.parametrize("how", ["bf16", "bf16 20:64", "bf16 any", "int4 24:64", "int8 32:64", "int8 any"])
def test_pruned_matrices_are_unpacked_where_that_is_faster(how: str) -> None:
    packed = Packed(tiny("llama"), how)
    best = core().choose()[0].name
    found, kept = runner_of(packed), runner_of(packed, instructions=best)
    unpacked = {choice.subject: choice.value for choice in found.choices}.get("pruned matrices")
    faster = best != "avx512" and how.startswith("int")
    assert (unpacked is not None) == faster
    assert "pruned matrices" not in {choice.subject for choice in kept.choices}
    if how.startswith("int"):
        assert torch.equal(whole(found, IDS), whole(kept, IDS))  # sums of integers are exact in any order
    else:
        assert error(whole(found, IDS), whole(kept, IDS)) < 1e-2


@pytest.mark.parametrize("how", [how for how in LAYOUTS if how.startswith("int")])
def test_inputs_of_16_bits_leave_only_the_rounding_of_bf16(how: str) -> None:
    model = tiny("llama")
    packed = Packed(model, how)
    rounded, exact = runner_of(packed), runner_of(packed, input_bits=16)
    expected = own_logits(model, IDS)
    assert error(whole(exact, IDS), expected) < TOLERANCES["bf16"]
    assert error(whole(exact, IDS), expected) < error(whole(rounded, IDS), expected)
    chosen = [{choice.subject: choice for choice in runner.choices}["inputs"] for runner in (rounded, exact)]
    assert [choice.value for choice in chosen] == ["8 bits", "16 bits"]
    assert "input_bits = 16 avoids that" in chosen[0].reason


def test_a_model_without_integer_weights_has_no_choice_of_inputs() -> None:
    assert "inputs" not in {choice.subject for choice in runner_of(Packed(tiny("llama")), input_bits=16).choices}


def test_an_int8_cache_changes_logits_little() -> None:
    model = tiny("qwen3")
    packed = Packed(model)
    full, small = (runner_of(packed, key_bits=bits) for bits in (16, 8))
    assert error(whole(small, IDS), own_logits(model, IDS)) < 0.025
    assert error(whole(small, IDS), whole(full, IDS)) > 0  # else it was not used


@pytest.mark.parametrize("how", ["bf16", "int8", "int4 32:64"])
@pytest.mark.parametrize("name", ["llama, odd", "mistral", "mistral, wide", "gemma2"])
def test_a_row_is_bit_for_bit_the_same_in_any_batch(name: str, how: str) -> None:
    runner = runner_of(Packed(tiny(name), how))
    generator = random.Random(0)
    texts = [[generator.randrange(33) for _ in range(length)] for length in (3, 45, 70, 100)]
    expected = [whole(runner, text) for text in texts]
    done = [0] * len(texts)
    sequences = [Sequence("", tuple(text), Sampling()) for text in texts]
    compared = 0
    while any(count < len(text) for count, text in zip(done, texts, strict=True)):
        chunks = []
        for slot, text in enumerate(texts):
            count = min(generator.choice((0, 1, 1, 13)), len(text) - done[slot])
            if count:
                ids = tuple(text[done[slot] : done[slot] + count])
                chunks.append(Chunk(sequences[slot], slot, done[slot], ids, True))
                done[slot] += count
        rows = runner.last(Batch(tuple(chunks)), [len(chunk.ids) for chunk in chunks])
        for chunk, part in zip(chunks, torch.split(rows, [len(chunk.ids) for chunk in chunks]), strict=True):
            assert torch.equal(part, expected[chunk.slot][chunk.start : chunk.end])
            compared += len(part)
    assert compared == sum(map(len, texts))


def serve(runner: NativeRunner, prompts: list[tuple[int, ...]], slots: int) -> list[list[int]]:
    """Greedy replies to all prompts, as the engine would make them."""
    scheduler = Scheduler(slots=slots, context=128, batch_tokens=32, max_waiting=99)
    sequences = [Sequence("one", prompt, Sampling(temperature=0, max_tokens=20)) for prompt in prompts]
    for sequence in sequences:
        scheduler.add(sequence)
    while not scheduler.idle:
        batch = scheduler.schedule()
        scheduler.commit(batch, sample(batch, runner.forward(batch)))
    return [sequence.tokens for sequence in sequences]


def test_a_prompt_alone_and_among_fifteen_others_gets_the_same_reply() -> None:
    runner = runner_of(Packed(tiny("llama, tied"), "int8"), slots=16)
    prompts = [tuple(range(start, start + 5 + 3 * start)) for start in range(1, 17)]
    assert serve(runner, prompts, slots=16) == [serve(runner, [prompt], slots=16)[0] for prompt in prompts]


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma3_text"])
def test_greedy_replies_are_what_the_logits_of_transformers_allow(name: str) -> None:
    model = tiny(name)
    prompts = [tuple(range(start, start + 9)) for start in range(1, 5)]
    for tokens in serve(runner_of(Packed(model)), prompts, slots=4):
        logits = own_logits(model, tokens)
        for place, token in enumerate(tokens[9:], start=8):
            assert logits[place].max() - logits[place][token] < 0.03 * logits[place].abs().max()


def test_an_invalid_batch_is_refused() -> None:
    runner = runner_of(Packed(tiny("llama")), slots=2, context=40)
    with pytest.raises(ValueError, match="vocabulary of 96"):
        whole(runner, [1, 96])
    with pytest.raises(ValueError, match="vocabulary of 96"):
        whole(runner, [-1])
    with pytest.raises(ValueError, match="beyond the context"):
        whole(runner, [1] * 41)
    with pytest.raises(ValueError, match="outside the cache"):
        whole(runner, [1], slot=9)
    with pytest.raises(ValueError, match="larger than this step"):
        runner_of(Packed(tiny("llama"))).last(
            Batch(tuple(Chunk(Sequence("", (1,) * 100, Sampling()), slot, 0, (1,) * 100, True) for slot in (0, 1))),
            [1, 1],
        )


def test_a_context_beyond_the_model_is_refused() -> None:
    with pytest.raises(ConfigError, match="at most 128 positions"):
        runner_of(Packed(tiny("llama")), context=129)


def test_a_cache_beyond_memory_is_a_config_error() -> None:
    with pytest.raises(ConfigError, match=r"MB for keys and values of 16777216 sequences of 128 positions do not fit"):
        runner_of(Packed(tiny("llama")), slots=1 << 24)


@pytest.mark.parametrize("bits", [8, 16])
def test_the_cache_is_as_large_as_the_plan_says(bits: int) -> None:
    packed = Packed(tiny("llama", head_dim=64))
    runner = runner_of(packed, slots=16, key_bits=bits)
    plan = plan_of(packed.config, packed.names())
    allocated = int(runner.choices[4].reason.split()[0])
    assert plan.cache_bytes(17 * 128, bits) >> 20 == pytest.approx(allocated, rel=0.15)


@pytest.mark.parametrize(
    ("name", "weight", "shape"),
    [
        ("llama", "model.layers.1.mlp.down_proj.weight", (64, 95)),
        ("llama", "model.norm.weight", (63,)),
        ("qwen2", "model.layers.0.self_attn.k_proj.bias", (31,)),
        ("llama", "model.embed_tokens.weight", (95, 64)),
    ],
)
def test_a_weight_of_the_wrong_shape_is_named(name: str, weight: str, shape: tuple[int, ...]) -> None:
    packed = Packed(tiny(name))
    packed._parts[weight] = {"values": torch.zeros(shape, dtype=torch.bfloat16)}
    with pytest.raises(ArtifactError, match=f"{weight} is "):
        runner_of(packed)


def test_damaged_weights_fail_at_load() -> None:
    packed = Packed(tiny("llama"))
    packed._parts["model.layers.0.mlp.up_proj.weight"]["values"][3, 5] = float("nan")
    with pytest.raises(ArtifactError, match="NaN"):
        runner_of(packed)


def test_unaligned_weights_are_copied() -> None:
    model = tiny("llama")
    packed = Packed(model)
    for parts in packed._parts.values():
        values = parts["values"]
        room = torch.zeros(values.numel() + 1, dtype=values.dtype)
        room[1:] = values.flatten()
        parts["values"] = room[1:].view(values.shape)
    assert error(whole(runner_of(packed), IDS), own_logits(model, IDS)) < TOLERANCES["bf16"]


def perplexity(logits: list[torch.Tensor], texts: list[list[int]]) -> float:
    """Over all ids but the first of each text."""
    losses = [
        torch.nn.functional.cross_entropy(rows[:-1].double(), torch.tensor(ids[1:]), reduction="none")
        for rows, ids in zip(logits, texts, strict=True)
    ]
    return float(torch.cat(losses).mean().exp())


@pytest.mark.parametrize("how", ["bf16", *LAYOUTS])
def test_perplexity_through_the_runtime_is_that_through_torch(how: str) -> None:
    model = tiny("llama")
    packed = Packed(model, how)
    runner = runner_of(packed)
    generator = random.Random(1)
    texts = [[generator.randrange(96) for _ in range(128)] for _ in range(24)]
    ours = perplexity([whole(runner, text) for text in texts], texts)
    torchs = perplexity([own_logits(model, text) for text in texts], texts)
    assert abs(ours / torchs - 1) < 0.005
