"""Builds the native step's model from an artifact's weights, copied into large pages or mapped from the file.

Every shape is compared with the plan before native code sees a pointer.
"""

from typing import Any, Protocol

import numpy
import torch
from msgspec import structs
from torch import Tensor

from server.artifact.checkpoint.layouts import RUN, Balanced, Dense, Layout, Quantised, Unstructured
from server.artifact.checkpoint.packing import pack
from server.artifact.checkpoint.quantised import unpack_quantised, widened, with_zeros
from server.engine.native import core
from server.engine.native.pages import Pages
from server.engine.native.plan import Refused
from server.engine.native.plan.decoder import LayerPlan, Plan
from server.engine.native.plan.rope import Rope
from server.errors import ArtifactError

ALIGNMENT = 64


class Weights(Protocol):
    """The part of an artifact that loading needs."""

    def layout(self, name: str) -> Layout:
        """How a weight is stored."""
        ...

    def parts(self, name: str) -> dict[str, Tensor]:
        """The stored tensors of a weight, by part."""
        ...


class Loader:
    """Builds the C++ `Model` of a plan.

    With `pages`, matrices are copied into these; with `tiles` too, in the order that the kernels read. With `unpack`
    and without `tiles`, pruned integer matrices are stored dense, since their dense product is faster. With
    `dequantise`, integer matrices are stored as their values in bf16, and so are not multiplied by rounded inputs.
    """

    def __init__(
        self,
        weights: Weights,
        plan: Plan,
        pages: Pages | None = None,
        *,
        tiles: bool = False,
        unpack: bool = False,
        dequantise: bool = False,
    ) -> None:
        self._weights = weights
        self._plan = plan
        self._pages = pages
        self._tiles = tiles and pages is not None
        self._unpack = unpack and not tiles
        self._dequantise = dequantise
        self.integers = 0
        """Matrices of integer codes, whose inputs are rounded."""
        self.dequantised = 0
        """Integer matrices stored as values in bf16."""
        self.unpacked = 0
        """Matrices stored dense although pruned."""
        self.kinds: dict[str, int] = {}
        """Number of matrices by how the artifact stores them."""

    def model(self, positions: int) -> Any:
        """The model for contexts of up to `positions`; raises ArtifactError naming a weight of the wrong shape."""
        plan = self._plan
        vocabulary, hidden = plan.numbers.vocabulary, plan.numbers.hidden
        embedding = self._matrix(plan.embedding, vocabulary, hidden)
        return core().Model(
            positions=positions,
            embedding=embedding,
            head=embedding if plan.head == plan.embedding else self._matrix(plan.head, vocabulary, hidden),
            norm=self._norm(plan.norm, hidden),
            ropes=[_angles(rope, positions) for rope in plan.ropes],
            layers=[self._layer(layer) for layer in plan.layers],
            **structs.asdict(plan.numbers),
        )

    def _layer(self, layer: LayerPlan) -> Any:
        sizes, numbers = self._plan.sizes, self._plan.numbers
        norm_sizes = {"query_norm": numbers.head_width, "key_norm": numbers.head_width}
        return core().Layer(
            window=layer.window,
            rope=layer.rope,
            **{use: self._matrix(name, *sizes[use]) for use, name in layer.matrices.items()},
            **{use: self._norm(name, norm_sizes.get(use, numbers.hidden)) for use, name in layer.norms.items()},
            **{use: self._vector(name, sizes[use.removesuffix("_bias")][0]) for use, name in layer.biases.items()},
        )

    def _norm(self, name: str, size: int) -> Any:
        return self._vector(name, size) + numpy.float32(self._plan.one_plus)

    def _vector(self, name: str, size: int) -> Any:
        layout = self._weights.layout(name)
        if not isinstance(layout, Dense):
            raise ArtifactError(f"The weight {name} is stored as a packed matrix; it must be a dense vector.")
        vector = self._weights.parts(name)["values"]
        if list(vector.shape) != [size]:
            raise ArtifactError(f"The weight {name} is {list(vector.shape)}, but the configuration needs [{size}].")
        return vector.float().numpy()

    def _matrix(self, name: str, rows: int, columns: int) -> Any:
        layout = self._weights.layout(name)
        parts = self._weights.parts(name)
        if isinstance(layout, Quantised) and layout.transposed:
            raise Refused(f"the weight {name} is stored transposed")
        held = list(parts["values"].shape)
        if not isinstance(layout, Dense):
            held = [parts.get("mask", parts["values"]).shape[0], layout.columns]
        if held != [rows, columns]:
            raise ArtifactError(f"The weight {name} is {held}, but the configuration needs {[rows, columns]}.")
        label = _label(layout, columns)
        self.kinds[label] = self.kinds.get(label, 0) + 1
        if self._dequantise and isinstance(layout, Quantised):
            layout, parts = _values(layout, parts)
            self.dequantised += 1
        layout, parts = _computed(layout, parts)
        self.integers += isinstance(layout, Quantised)
        if self._unpack and (wider := _unpacked(layout, parts)):
            layout, parts = wider
            self.unpacked += 1
        return self._weight(layout, parts, rows, columns)

    def _weight(self, layout: Layout, parts: dict[str, Tensor], rows: int, columns: int) -> Any:
        """The kernels' matrix of these parts, copied where the loader copies."""
        kind, keep, group = _kind(layout, columns)
        values = parts["values"] if kind != "bf16" else parts["values"].bfloat16()

        def part(name: str, dtype: Any) -> Any:
            return self._aligned(parts[name], dtype) if name in parts else None

        weight = core().Weight(
            kind=kind,
            rows=rows,
            columns=columns,
            keep=keep,
            group=group,
            values=self._aligned(values, numpy.uint8),
            mask=part("mask", numpy.uint64),
            scales=part("scales", numpy.uint16),
            offsets=part("offsets", numpy.uint64),
            minimums=part("minimums", numpy.uint16),
            levels=layout.levels if isinstance(layout, Quantised) else None,
        )
        return weight.tiled(self._pages.take(weight.tiled_bytes)) if self._pages and self._tiles else weight

    def _aligned(self, tensor: Tensor, kind: Any) -> Any:
        """The bytes of a tensor as a flat array of `kind`, on a multiple of 64 bytes."""
        flat = tensor.contiguous().flatten().view(torch.uint8)
        if self._pages and not self._tiles:
            return self._pages.keep(flat.numpy()).view(kind)
        if flat.data_ptr() % ALIGNMENT:
            flat = flat.clone()
        return flat.numpy().view(kind)


def _values(layout: Quantised, parts: dict[str, Tensor]) -> tuple[Layout, dict[str, Tensor]]:
    """An integer matrix as its values in bf16, with its mask if it has one."""
    values = unpack_quantised(parts, layout).bfloat16()
    if layout.keep is None:
        return Dense(), {"values": values}
    kept, mask = pack(values, layout.keep)
    return Balanced(keep=layout.keep, columns=layout.columns), {"values": kept, "mask": mask}


def _computed(layout: Layout, parts: dict[str, Tensor]) -> tuple[Layout, dict[str, Tensor]]:
    """What the kernels compute with: pruned codes of 3, 5 or 6 bits, and indices of 16 levels, become bytes."""
    if not isinstance(layout, Quantised):
        return layout, parts
    pruned = layout.keep is not None and layout.bits in (3, 5, 6)
    return widened(parts, layout) if pruned or (layout.levels and layout.bits == 4) else (layout, parts)


def _unpacked(layout: Layout, parts: dict[str, Tensor]) -> tuple[Layout, dict[str, Tensor]] | None:
    """A pruned matrix stored dense, if its dense product is faster; else None."""
    if isinstance(layout, Quantised) and (layout.keep is not None or layout.count is not None):
        return with_zeros(parts, layout)
    return None


def _label(layout: Layout, columns: int) -> str:
    """How a matrix is stored, for people."""
    kind, keep, _ = _kind(layout, columns)
    if isinstance(layout, Quantised):
        kind += " asymmetric" if layout.asymmetric else " in a table" if layout.levels else ""
    return {RUN: kind, 0: f"{kind}, unstructured"}.get(keep, f"{kind}, {keep} of {RUN}")


def _kind(layout: Layout, columns: int) -> tuple[str, int, int]:
    """Value type, columns kept in each run of 64 (0: any number), and columns per scale, as the kernels take them."""
    if isinstance(layout, Quantised):
        return f"int{layout.bits}", 0 if layout.count else layout.keep or RUN, layout.group
    keep = layout.keep if isinstance(layout, Balanced) else 0 if isinstance(layout, Unstructured) else RUN
    return "bf16", keep, columns


def _angles(rope: Rope, positions: int) -> Any:
    """Cosines and sines [positions, frequencies] in float32, the products rounded as transformers rounds them."""
    places = numpy.arange(positions, dtype=numpy.float32)
    turned = (places[:, None] * numpy.array(rope.frequencies, dtype=numpy.float32)[None, :]).astype(numpy.float64)
    cosines, sines = ((function(turned) * rope.factor).astype(numpy.float32) for function in (numpy.cos, numpy.sin))
    return core().Rope(cosines=cosines, sines=sines)
