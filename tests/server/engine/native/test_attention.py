"""Attention over the cache, on every instruction set of this machine, against dense attention in float64.

Keys and values are rounded as the cache stores them; with AVX-512 queries and softmax weights are rounded to bfloat16,
which bounds the error. The cache is filled with NaN first, as a reused block might be.
"""

from typing import Any, NamedTuple

import numpy
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from server.engine.native import absent, core

pytestmark = pytest.mark.skipif(absent() is not None, reason=f"{absent()}")

SETS = [] if absent() else list(core().available())
Array = NDArray[Any]


class Case(NamedTuple):
    """Shapes and options of one attention."""

    positions: int
    rows: int
    heads: int
    group: int
    width: int
    window: int = 0
    cap: float = 0


CASES = [
    Case(1, 1, 1, 1, 1),
    Case(31, 1, 2, 3, 64),
    Case(32, 32, 3, 3, 64),
    Case(33, 2, 1, 9, 64),
    Case(64, 40, 2, 1, 80),
    Case(95, 95, 1, 3, 17),
    Case(129, 128, 1, 7, 64),
    Case(130, 4, 2, 4, 128),
    Case(65, 33, 1, 50, 20),
    Case(160, 100, 2, 2, 256),
    Case(200, 77, 2, 3, 48, window=1),
    Case(200, 77, 2, 3, 48, window=33),
    Case(321, 64, 1, 5, 96, window=150, cap=30),
    Case(257, 256, 1, 3, 64, cap=5),
]


def inputs(case: Case) -> tuple[Array, Array, Array]:
    """Random queries [rows, heads * group, width], keys and values [positions, heads, width]."""
    generator = numpy.random.default_rng(case.positions + case.width)
    queries = generator.standard_normal((case.rows, case.heads * case.group, case.width)) * 2
    keys, values = generator.standard_normal((2, case.positions, case.heads, case.width))
    keys[:, :, 0] += 4  # a column apart from the rest, as trained keys have
    return queries.astype(numpy.float32), keys.astype(numpy.float32), values.astype(numpy.float32)


def cached(case: Case, name: str, eight_bits: bool, keys: Array, values: Array) -> Any:
    cache = core().KeyValueCache(
        positions=case.positions, heads=case.heads, width=case.width, eight_bits=eight_bits, set=core().choose(name)[0]
    )
    cache.append(keys, values)
    return cache


def attend(cache: Any, case: Case, queries: Array) -> Array:
    output = numpy.full_like(queries, numpy.nan)
    scale = case.width**-0.5
    cache.attend(queries, window=case.window, scale=scale, cap=case.cap, output=output)
    return output


def as_stored(values: Array, eight_bits: bool) -> Tensor:
    """The values as the cache rounds them, in float64."""
    exact = torch.from_numpy(values)
    if not eight_bits:
        return exact.bfloat16().double()
    step = exact.abs().amax(dim=-1, keepdim=True) / 127
    return ((exact / step).round() * step).double()


def dense(case: Case, queries: Array, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [rows, heads, width] in float64, and the largest magnitude that bounds each."""
    query = torch.from_numpy(queries).double().view(-1, case.heads, case.group, case.width)
    scores = torch.einsum("rhgw,phw->hgrp", query, keys) * case.width**-0.5
    if case.cap:
        scores = case.cap * torch.tanh(scores / case.cap)
    own = torch.arange(case.positions - case.rows, case.positions).unsqueeze(1)
    key = torch.arange(case.positions).unsqueeze(0)
    hidden = (key > own) | ((key <= own - case.window) if case.window else False)
    weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)
    outputs = torch.einsum("hgrp,phw->rhgw", weights, values).flatten(1, 2)
    sizes = torch.einsum("hgrp,phw->rhgw", weights, values.abs()).flatten(1, 2)
    return outputs, sizes


@pytest.mark.parametrize("eight_bits", [False, True], ids=["16 bits", "8 bits"])
@pytest.mark.parametrize("name", SETS)
def test_attention_is_that_of_float64(name: str, eight_bits: bool) -> None:
    for case in CASES:
        queries, keys, values = inputs(case)
        output = attend(cached(case, name, eight_bits, keys, values), case, queries)
        stored = as_stored(keys, eight_bits), as_stored(values, eight_bits)
        if name == "avx512":  # rounded after the scale, in bits
            factor = case.width**-0.5 * (1 / case.cap if case.cap else numpy.log2(numpy.e))
            queries = (torch.from_numpy(queries * numpy.float32(factor)).bfloat16().double() / factor).numpy()
        expected, size = dense(case, queries, *stored)
        error = (torch.from_numpy(output).double() - expected).abs()
        bound = 2**-7 if name == "avx512" else 2e-5
        assert (error <= bound * size + 1e-6).all(), (case, (error / size).max())
        assert (error / (size + 1e-9)).mean() < bound / 5


@pytest.mark.parametrize("eight_bits", [False, True], ids=["16 bits", "8 bits"])
@pytest.mark.parametrize("name", SETS)
def test_a_row_has_the_same_bits_alone_and_in_any_chunk(name: str, eight_bits: bool) -> None:
    generator = numpy.random.default_rng(0)
    for case in CASES:
        queries, keys, values = inputs(case)
        expected = attend(cached(case, name, eight_bits, keys, values), case, queries)
        begin = case.positions - case.rows
        cache = cached(case, name, eight_bits, keys[: begin + 1], values[: begin + 1])
        start, end = 0, 1  # rows of the chunk; the first is alone
        while start < case.rows:
            output = attend(cache, case, queries[start:end])
            assert (output.view(numpy.uint32) == expected[start:end].view(numpy.uint32)).all(), (case, start, end)
            start, end = end, min(case.rows, end + int(generator.choice((1, 1, 2, 5, 13, 16, 40))))
            cache.append(keys[begin + start : begin + end], values[begin + start : begin + end])


def test_arrays_of_other_shapes_are_refused() -> None:
    case = Case(4, 1, 2, 1, 8)
    _, keys, values = inputs(case)
    cache = cached(case, "", False, keys, values)
    with pytest.raises(ValueError, match=r"not \[positions, heads, width\]"):
        cache.append(keys[:, :1], values)
    with pytest.raises(ValueError, match="the cache is full"):
        cache.append(numpy.zeros((29, 2, 8), numpy.float32), numpy.zeros((29, 2, 8), numpy.float32))
    with pytest.raises(ValueError, match="the cache has fewer rows"):
        attend(cache, case, numpy.zeros((5, 2, 8), numpy.float32))
    with pytest.raises(ValueError, match="a size is out of range"):
        cached(Case(4, 1, 2, 1, 257), "", False, keys, values)
