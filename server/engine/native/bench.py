"""`python -m server.engine.native.bench`: tokens a second of a model's linear layers, by layout and batch size.

Random weights in the shapes of SmolLM2-135M, without attention and sampling: an upper bound of the engine's speed. The
layouts run in turns and the fastest run of each counts. One thread is measured in processor time, which other processes
on the core disturb little; several threads by the clock.
"""

import argparse
import os
import statistics
import time
from typing import Any, NamedTuple

import numpy
from numpy.typing import NDArray

from server.engine.native import core
from server.engine.native.pages import Pages

HIDDEN, FEED_FORWARD, KEYS, VOCABULARY = 576, 1536, 192, 49152
Array = NDArray[Any]


class Storage(NamedTuple):
    """A weight layout."""

    kind: str
    keep: int
    """Values kept of every 64 columns; 64: dense, 0: unstructured."""
    group: int = 64
    """Columns that share a scale."""
    asymmetric: bool = False
    """Whether a group has a minimum too."""


STORAGES = {
    "bf16": Storage("bf16", 64),
    "bf16 32:64": Storage("bf16", 32),
    "bf16 unstructured": Storage("bf16", 0),
    "int8": Storage("int8", 64),
    "int6": Storage("int6", 64, 32),
    "int5": Storage("int5", 64, 32),
    "int4 groups of 32": Storage("int4", 64, 32),
    "int5 asymmetric": Storage("int5", 64, 32, asymmetric=True),
    "int4 asymmetric": Storage("int4", 64, 32, asymmetric=True),
    "int3": Storage("int3", 64, 32),
    "int3 asymmetric": Storage("int3", 64, 32, asymmetric=True),
    "int8 32:64": Storage("int8", 32),
    "int8 unstructured": Storage("int8", 0),
    "int4": Storage("int4", 64),
    "int4 32:64": Storage("int4", 32),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m server.engine.native.bench", description=__doc__)
    parser.add_argument(
        "--storage", action="append", choices=STORAGES, help="measure only this layout; can be repeated"
    )
    parser.add_argument("--batch", type=int, action="append", help="rows of input; can be repeated; default 1, 8, 16")
    parser.add_argument("--instructions", default="", help="avx512, avx2, dotprod, neon or portable; default: the best")
    parser.add_argument(
        "--as-stored", action="store_true", help="neither in tiles nor in pages of 2 MB, like a mapped file"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--layers", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if options.threads == 1:
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    chosen, reason = core().choose(options.instructions)
    print(f"{chosen.name}: {reason}; {options.threads} threads; one reads memory at {bandwidth():.1f} GB/s")
    print(f"{'weights':18} {'MB':>6} {'batch':>5} {'tokens/s':>9} {'median':>9} {'slowest':>9} {'GB/s':>6}")
    pages = Pages() if chosen.tiles and not options.as_stored else None
    models = {name: Model(STORAGES[name], options.layers, pages) for name in options.storage or STORAGES}
    multiplier = core().Multiplier(core().Pool(options.threads), chosen)
    for batch in options.batch or (1, 8, 16):
        times: dict[str, list[float]] = {name: [] for name in models}
        for _ in range(options.rounds):
            for name, model in models.items():
                times[name].append(model.run(batch, multiplier, options.threads))
        for name, model in models.items():
            best, middle, worst = (batch / f(times[name]) for f in (min, statistics.median, max))
            rate = model.bytes / min(times[name]) / 1e9
            print(f"{name:18} {model.bytes / 1e6:6.1f} {batch:5} {best:9.1f} {middle:9.1f} {worst:9.1f} {rate:6.1f}")


class Model:
    """The linear layers and the head, with random weights."""

    def __init__(self, storage: Storage, layers: int, pages: Pages | None) -> None:
        generator = numpy.random.default_rng(0)
        shapes = [
            [(HIDDEN, HIDDEN), (KEYS, HIDDEN), (KEYS, HIDDEN)],
            [(HIDDEN, HIDDEN)],
            [(FEED_FORWARD, HIDDEN), (FEED_FORWARD, HIDDEN)],
            [(HIDDEN, FEED_FORWARD)],
        ] * layers + [[(VOCABULARY, HIDDEN)]]
        self.bytes = 0
        self._layers = []
        self._outputs: dict[int, list[list[Array]]] = {}

        def placed(weight: Any) -> Any:
            return weight.tiled(pages.take(weight.tiled_bytes)) if pages else weight

        for together in shapes:
            arrays = [_random(generator, storage, *shape) for shape in together]
            self.bytes += sum(a.nbytes for parts in arrays for a in parts.values() if a is not None)
            weights = [
                placed(
                    core().Weight(
                        kind=storage.kind, rows=rows, columns=columns, keep=storage.keep, group=storage.group, **parts
                    )
                )
                for (rows, columns), parts in zip(together, arrays, strict=True)
            ]
            self._layers.append(weights)

    def run(self, batch: int, multiplier: Any, threads: int) -> float:
        """Seconds of one pass over all layers: of processor time with one thread, else of the clock."""
        inputs = {n: numpy.ones((batch, n), numpy.float32) for n in (HIDDEN, FEED_FORWARD)}
        if batch not in self._outputs:  # written now: the first write to a page costs as much as the product
            shapes = [[(batch, weight.rows) for weight in layer] for layer in self._layers]
            self._outputs[batch] = [[numpy.ones(shape, numpy.float32) for shape in layer] for layer in shapes]
        outputs = self._outputs[batch]
        clock = time.thread_time if threads == 1 else time.perf_counter
        start = clock()
        for layer, out in zip(self._layers, outputs, strict=True):
            multiplier.multiply(layer, inputs[layer[0].columns], out)
        return clock() - start


def _random(generator: numpy.random.Generator, storage: Storage, rows: int, columns: int) -> dict[str, Array | None]:
    """The arrays of a random matrix in this layout."""
    runs = columns // 64
    groups = rows * -(-columns // storage.group)
    scales = None if storage.kind == "bf16" else numpy.full(groups, 0x2000, numpy.uint16)
    minimums = numpy.full(groups, 0xA000, numpy.uint16) if storage.asymmetric else None
    mask = offsets = None
    count = rows * columns
    if storage.keep < 64:
        mask = _masks(generator, storage.keep, rows * runs)
        kept = numpy.bitwise_count(mask).reshape(rows, runs).sum(axis=1, dtype=numpy.uint64)
        count = int(kept.sum())
        offsets = (kept.cumsum() - kept).astype(numpy.uint64) if storage.keep == 0 else None
    if storage.kind == "bf16":
        values = generator.integers(0x3C00, 0x3F00, count, dtype=numpy.uint16).view(numpy.uint8)
    else:
        values = generator.integers(0, 256, count * int(storage.kind[3:]) // 8, dtype=numpy.uint8)
    return {"values": values, "mask": mask, "scales": scales, "offsets": offsets, "minimums": minimums}


def _masks(generator: numpy.random.Generator, keep: int, count: int) -> NDArray[numpy.uint64]:
    """Random masks of `keep` bits each; if 0, each bit with probability one half."""
    if keep == 0:
        return generator.integers(0, 2**64, count, dtype=numpy.uint64)
    some = numpy.zeros((4096, 64), bool)
    some[:, :keep] = True
    words = numpy.packbits(generator.permuted(some, axis=1), axis=1, bitorder="little").view(numpy.uint64)[:, 0]
    return words[generator.integers(0, len(words), count)]


def bandwidth() -> float:
    """GB/s at which one thread reads 256 MB, as numpy sums float64: the fastest of five runs."""
    values = numpy.ones(32 << 20)
    times = []
    for _ in range(5):
        start = time.thread_time()
        values.sum()
        times.append(time.thread_time() - start)
    return values.nbytes / min(times) / 1e9


if __name__ == "__main__":
    main()
