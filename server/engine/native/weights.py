"""An artifact's weights as the native step takes them: copied into large pages, or views of the mapped file.

Every shape is compared with the plan before anything native sees a pointer.
"""

from collections.abc import Callable
from typing import Any, Protocol

import numpy
import torch
from torch import Tensor

from server.artifact.checkpoint.layouts import RUN, Balanced, Dense, Layout, Quantised, Unstructured
from server.artifact.checkpoint.quantised import with_zeros
from server.engine.native import core
from server.engine.native.pages import Pages
from server.engine.native.plan import LayerPlan, Plan, Refused
from server.errors import ArtifactError

ALIGNMENT = 64


class Weights(Protocol):
    """What is used of an artifact."""

    def layout(self, name: str) -> Layout:
        """How a weight is stored."""
        ...

    def parts(self, name: str) -> dict[str, Tensor]:
        """The tensors that it is stored as."""
        ...


class Loader:
    """Makes what the step needs of a plan; `copied` counts the weights that do not lie in the file as they are used.

    With `pages`, all matrices are copied into these, with `tiles` in the order that kernels read. With `unpack`, and
    without `tiles`, pruned matrices whose dense product is quicker are unpacked: those of integers.
    """

    def __init__(
        self, weights: Weights, plan: Plan, pages: Pages | None = None, *, tiles: bool = False, unpack: bool = False
    ) -> None:
        self._weights = weights
        self._plan = plan
        self._pages = pages
        self._tiles = tiles and pages is not None
        self._unpack = unpack and not tiles
        self.copied = self.unpacked = 0
        self.kinds: dict[str, int] = {}
        """How many matrices are stored in each way."""

    def values(self, positions: int) -> dict[str, Any]:
        """The numbers, weights and angles of the first `positions` positions; ArtifactError names what does not fit."""
        plan = self._plan
        embedding = self._matrix(plan.embedding, plan.vocabulary, plan.hidden)
        head = embedding if plan.head == plan.embedding else self._matrix(plan.head, plan.vocabulary, plan.hidden)
        return {
            "hidden": plan.hidden,
            "head_width": plan.head_width,
            "vocabulary": plan.vocabulary,
            "positions": positions,
            "epsilon": plan.epsilon,
            "embedding_scale": plan.embedding_scale,
            "attention_scale": plan.attention_scale,
            "attention_cap": plan.attention_cap,
            "logit_cap": plan.logit_cap,
            "gelu": plan.activation == "gelu_tanh",
            "embedding": embedding,
            "head": head,
            "norm": self._norm(plan.norm, plan.hidden),
            "ropes": [angles(rope.frequencies, rope.factor, positions) for rope in plan.ropes],
            "layers": [self._layer(layer) for layer in plan.layers],
        }

    def _layer(self, layer: LayerPlan) -> dict[str, Any]:
        plan = self._plan
        sizes = plan.sizes
        values: dict[str, Any] = {"window": layer.window, "rope": layer.rope}
        for use, name in layer.matrices.items():
            values[use] = self._matrix(name, *sizes[use])
        for use, name in layer.norms.items():
            values[use] = self._norm(name, plan.head_width if use in ("query_norm", "key_norm") else plan.hidden)
        for use, name in layer.biases.items():
            values[use] = self._vector(name, sizes[use.removesuffix("_bias")][0])
        return values

    def _norm(self, name: str, size: int) -> Any:
        return self._vector(name, size) + numpy.float32(self._plan.one_plus)

    def _vector(self, name: str, size: int) -> Any:
        layout = self._weights.layout(name)
        if not isinstance(layout, Dense):
            raise ArtifactError(f"The weight {name} is stored as a packed matrix where a vector is needed.")
        vector = self._weights.parts(name)["values"]
        if list(vector.shape) != [size]:
            raise ArtifactError(f"The weight {name} is {list(vector.shape)}, where the configuration needs [{size}].")
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
            raise ArtifactError(f"The weight {name} is {held}, where the configuration needs {[rows, columns]}.")
        kind, keep, group = _kind(layout, columns)
        label = {RUN: kind, 0: f"{kind}, unstructured"}.get(keep, f"{kind}, {keep} of {RUN}")
        self.kinds[label] = self.kinds.get(label, 0) + 1
        if self._unpack and (wider := _unpacked(layout, parts)):
            layout, parts = wider
            kind, keep, group = _kind(layout, columns)
            self.unpacked += 1
        halves = parts["values"] if kind != "bf16" else parts["values"].bfloat16()
        self.copied += halves is not parts["values"]
        weight = core().Weight(
            kind=kind,
            rows=rows,
            columns=columns,
            keep=keep,
            group=group,
            values=self._lined_up(halves, numpy.uint8),
            mask=self._lined_up(parts["mask"], numpy.uint64) if "mask" in parts else None,
            scales=self._lined_up(parts["scales"], numpy.uint16) if "scales" in parts else None,
            offsets=self._lined_up(parts["offsets"], numpy.uint64) if "offsets" in parts else None,
        )
        return weight.tiled(self._pages.take(weight.tiled_bytes)) if self._pages and self._tiles else weight

    def _lined_up(self, tensor: Tensor, kind: Any) -> Any:
        """The bytes of a tensor as a line of `kind`, on a multiple of 64 bytes."""
        flat = tensor.contiguous().flatten().view(torch.uint8)
        if self._pages and not self._tiles:
            return self._pages.keep(flat.numpy()).view(kind)
        if flat.data_ptr() % ALIGNMENT:
            flat = flat.clone()
            self.copied += 1
        return flat.numpy().view(kind)


def _unpacked(layout: Layout, parts: dict[str, Tensor]) -> tuple[Layout, dict[str, Tensor]] | None:
    """A pruned matrix with its zeros, where that makes it quicker."""
    if isinstance(layout, Quantised) and (layout.keep is not None or layout.count is not None):
        return with_zeros(parts, layout)
    return None


def _kind(layout: Layout, columns: int) -> tuple[str, int, int]:
    """How the values are stored, how many of 64 columns, and how many share a scale."""
    if isinstance(layout, Quantised):
        return f"int{layout.bits}", 0 if layout.count else layout.keep or RUN, layout.group
    keep = layout.keep if isinstance(layout, Balanced) else 0 if isinstance(layout, Unstructured) else RUN
    return "bf16", keep, columns


def angles(frequencies: tuple[float, ...], factor: float, positions: int) -> tuple[Any, Any]:
    """Cosines and sines of every position, float32 [positions, frequencies]; products as transformers rounds them."""
    turned = (
        numpy.arange(positions, dtype=numpy.float32)[:, None] * numpy.array(frequencies, dtype=numpy.float32)[None, :]
    )
    functions: tuple[Callable[[Any], Any], ...] = (numpy.cos, numpy.sin)
    cosines, sines = ((function(turned.astype(numpy.float64)) * factor).astype(numpy.float32) for function in functions)
    return cosines, sines
