"""Runs a planned decoder with the C++ step, on packed weights.

A batch is validated before it is computed. Loading proves that splitting a prompt into chunks changes no bit.
"""

from collections.abc import Iterator
from collections.abc import Sequence as Ids
from pathlib import Path
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from server.artifact.checkpoint.layouts import RUN, Layout, Quantised
from server.engine.batch import Batch, Chunk
from server.engine.blocks import BLOCK, CacheSize
from server.engine.choice import Choice
from server.engine.native import core
from server.engine.native.pages import choose_pages
from server.engine.native.plan.decoder import Plan
from server.engine.native.resources import choose_threads
from server.engine.native.weights import Loader, Weights
from server.engine.runners import Options
from server.engine.sequence import Sampling, Sequence
from server.errors import ArtifactError, ConfigError

Bytes = numpy.ndarray[Any, numpy.dtype[numpy.uint8]]
UNPACKED = "without AVX-512 their dense products are faster, at the memory of dense weights"


class Artifact(Weights, Protocol):
    """The part of an artifact that the runner needs."""

    path: Path


class NativeRunner:
    """Computes batches with a cache of `slots` x `context` positions; raises Refused for unsupported weights."""

    exact_rows = True

    def __init__(self, artifact: Artifact, plan: Plan, options: Options) -> None:
        slots, context = options.slots, options.context
        if context > plan.positions:
            raise ConfigError(f"context is {context}; the model supports at most {plan.positions} positions.")
        self.vocabulary = plan.numbers.vocabulary
        self._options = options
        self._size = CacheSize(slots, context)
        native = core()
        assert native.BLOCK_POSITIONS == BLOCK
        try:
            instructions, why = native.choose(options.instructions)
            size = _weight_bytes(artifact, plan, options)
            cache = plan.cache_bytes(self._size.count * BLOCK, options.key_bits)
            pages, place = choose_pages(size, tiles=instructions.tiles, beside=cache)
            unpack, dequantise = not options.instructions, options.input_bits == 16
            loader = Loader(artifact, plan, pages, tiles=instructions.tiles, unpack=unpack, dequantise=dequantise)
            threads, reason = choose_threads(options.threads)
            self._step = native.Step(
                loader.model(context),
                tokens=options.batch_tokens,
                blocks=self._size.count,
                eight_bits=options.key_bits == 8,
                pool=native.Pool(threads),
                set=instructions,
            )
        except ValueError as error:
            raise ArtifactError(f"{artifact.path}: {error}.") from None
        except MemoryError:
            raise too_large(size, cache, options) from None
        room = self._step.cache_bytes >> 20
        kinds = ", ".join(f"{count} of {kind}" for kind, count in sorted(loader.kinds.items()))
        self.choices: tuple[Choice, ...] = (
            Choice("runner", "native", f"the model has a plan; its matrices: {kinds}"),
            Choice("instructions", instructions.name, why),
            Choice("threads", str(threads), reason),
            place,
            Choice("keys and values", f"{options.key_bits} bits", f"{room} MB for {slots} x {context}"),
            *_inputs(loader, size),
        )
        self._prove()

    def forward(self, batch: Batch) -> Tensor:
        """See `Runner`."""
        return self.last(batch, batch.wanted)

    def last(self, batch: Batch, counts: Ids[int]) -> Tensor:
        """See `Scoring`."""
        logits = torch.empty(sum(counts), self.vocabulary)
        ids = numpy.array([token for chunk in batch.chunks for token in chunk.ids], dtype=numpy.int64)
        if ids.size and not 0 <= ids.min() <= ids.max() < self.vocabulary:
            raise ValueError(f"a token id is outside the vocabulary of {self.vocabulary}")
        rows: list[Any] = []
        for chunk, count in zip(batch.chunks, counts, strict=True):
            rows.append((chunk.start, len(chunk.ids), count))
        chunks = numpy.array(rows, dtype=numpy.int32).reshape(-1, 3)
        self._step.run(ids.astype(numpy.int32), chunks, self._tables(batch), logits.numpy())
        return logits

    @property
    def layout(self) -> str:
        """What the bytes of a block depend on, beside the model."""
        instructions = next(choice.value for choice in self.choices if choice.subject == "instructions")
        return f"{instructions} {self._options.key_bits} {self._options.input_bits} {BLOCK}"

    @property
    def block_bytes(self) -> int:
        """Bytes of the keys and values of one block."""
        return int(self._step.block_bytes)

    def read_blocks(self, blocks: Ids[int]) -> Bytes:
        """A copy of blocks of the cache, uint8 [blocks, block_bytes]."""
        values = numpy.empty((len(blocks), self.block_bytes), numpy.uint8)
        self._step.read_blocks(numpy.array(blocks, numpy.int32), values)
        return values

    def write_blocks(self, blocks: Ids[int], values: Bytes) -> None:
        """Put such a copy back."""
        self._step.write_blocks(numpy.array(blocks, numpy.int32), numpy.ascontiguousarray(values))

    def _tables(self, batch: Batch) -> Any:
        """The block table of each chunk, padded with -1."""
        tables = numpy.full((len(batch.chunks), self._size.per_sequence), -1, dtype=numpy.int32)
        for row, chunk in zip(tables, batch.chunks, strict=True):
            blocks = self._size.table(chunk.slot, chunk.blocks)
            row[: len(blocks)] = blocks
        return tables

    def _prove(self) -> None:
        """Raise ArtifactError unless a few ids have the same finite logits at once and in two chunks."""
        ids = tuple(
            token % self.vocabulary
            for token in range(11, 11 + min(8, self._options.context, self._options.batch_tokens))
        )
        pieces = [(0, len(ids) // 2), (len(ids) // 2, len(ids))]
        whole, parts = (self._probe(ids, cuts) for cuts in ([(0, len(ids))], pieces))
        if not bool(whole.isfinite().all()):
            raise ArtifactError("The model computes NaN or infinite logits: its weights are damaged.")
        if not torch.equal(whole, parts):
            raise ArtifactError("The native step computes other logits in chunks; please report this bug of Secateur.")

    def _probe(self, ids: tuple[int, ...], cuts: Ids[tuple[int, int]]) -> Tensor:
        sequence = Sequence("", ids, Sampling())
        logits = torch.empty(0)
        for start, end in cuts:
            if start < end:
                logits = self.forward(Batch((Chunk(sequence, 0, start, ids[start:end], True),)))
        return logits


def _weight_bytes(artifact: Artifact, plan: Plan, options: Options) -> int:
    """Bytes that the weights take in memory: those of the file, or 2 for each value with inputs of 16 bits."""
    stored = sum(file.stat().st_size for file in artifact.path.glob("*.safetensors"))
    layouts = {name: artifact.layout(name) for name in plan.names}
    if options.input_bits == 8 or not any(isinstance(layout, Quantised) for layout in layouts.values()):
        return stored
    return sum(_value_bytes(layout, artifact.parts(name)) for name, layout in layouts.items())


def _value_bytes(layout: Layout, parts: dict[str, Tensor]) -> int:
    """Bytes of one weight whose values are kept in bf16."""
    if not isinstance(layout, Quantised):
        return sum(part.nbytes for part in parts.values())
    rows, columns = parts["scales"].shape[0], layout.columns
    return rows * (columns * 2 if layout.keep is None else -(-columns // RUN) * (layout.keep * 2 + 8))


def _inputs(loader: Loader, size: int) -> Iterator[Choice]:
    """What inputs of integer weights are rounded to, and which pruned matrices are unpacked, where there are any."""
    if loader.dequantised:
        reason = f"as input_bits says: {loader.dequantised} integer matrices are kept in bf16, {size >> 20} MB"
        yield Choice("inputs", "16 bits", reason)
    elif loader.integers:
        reason = "integer weights are multiplied by integers, so replies may differ from the exported model's"
        yield Choice("inputs", "8 bits", f"{reason}; input_bits = 16 avoids that, at 2 bytes a weight")
    if loader.unpacked:
        yield Choice("pruned matrices", f"{loader.unpacked} unpacked", UNPACKED)


def too_large(weights: int, cache: int, options: Options) -> ConfigError:
    """The error for `weights` and `cache` bytes that do not fit into memory."""
    return ConfigError(
        f"{weights >> 20} MB of weights and {cache >> 20} MB for keys and values of {options.slots} sequences of "
        f"{options.context} positions do not fit into memory: lower slots or context, or set key_bits = 8."
    )
