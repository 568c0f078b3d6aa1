"""The cuttable structure of a whole model (layers, hidden dimensions, KV groups, feed-forward units), and its cut.

Embeddings and rowwise layers write the residual stream; norms, colwise layers and the head read it. Knows no
architecture: the layers come from the tensor-parallel plan, the rest from transformers' accessors and from shapes. A
wrong guess shows when a cut model is compared with the masked one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused, RecipeError
from pruning.model.blocks import Blocks, is_linear, weight_of
from pruning.model.weights import InMemory
from pruning.stages.context import StageModel
from pruning.stages.structured.coupled_layers import CoupledLayers, attention, feed_forward, local_linears
from pruning.stages.structured.depth import shortened, without
from pruning.stages.structured.surgery import (
    Cut,
    cut_out,
    refuse_other_shapes,
    unit_features,
    with_heads,
    with_hidden,
    with_width,
)

NAMES = {"layers": "layers", "hidden": "hidden dimensions", "kv_groups": "KV groups", "ffn": "feed-forward units"}
"""The kinds of structure, as error messages call them."""


class Structure(NamedTuple):
    """The cuttable structure of a model; modules are named by their path in it."""

    path: str
    """Path of the list of blocks."""
    sizes: Mapping[str, int]
    """Number of layers and hidden dimensions, and of KV groups and feed-forward units per layer."""
    groups: Mapping[str, CoupledLayers]
    """Coupled layers of each kind with units, `kv_groups` and `ffn`, by name within a block."""
    widths: Mapping[str, int]
    """Rows of each colwise and columns of each rowwise layer of a block."""
    embeddings: tuple[str, ...]
    norms: tuple[str, ...]
    head: str
    tied: bool
    """Whether head and embedding share one weight."""

    def blocks(self) -> Iterator[tuple[int, str]]:
        """The number of each block and the prefix of its modules' names."""
        return ((index, f"{self.path}.{index}.") for index in range(self.sizes["layers"]))

    def per_layer(self, kind: str) -> tuple[int, ...]:
        """The shape of a tensor with one entry per unit: [units], or [layers, units] for units within layers."""
        return (self.sizes["layers"], self.sizes[kind]) if kind in self.groups else (self.sizes[kind],)

    def units(self, kind: str, kept: Tensor, layer: str) -> Tensor:
        """The rows or columns of `layer`, of the coupled layers `kind`, that belong to the units `kept`."""
        return unit_features(kept, self.widths[layer] // self.groups[kind].units)


def find_structure(blocks: Blocks, named: Mapping[str, str], config: Mapping[str, Any]) -> Structure:
    """The structure of a model; raises ModelRefused if its configuration or plan does not show it."""
    hidden = config.get("hidden_size")
    if hidden is None:
        raise ModelRefused("config.json has no hidden_size, so the residual stream cannot be cut")
    groups = {"kv_groups": attention(blocks, named, config), "ffn": feed_forward(blocks, named)}
    linears = local_linears(blocks, 0)
    rows = {name: weight_of(linears[name]).shape[0] for group in groups.values() for name in group.colwise}
    columns = {group.rowwise: weight_of(linears[group.rowwise]).shape[1] for group in groups.values()}
    modules = dict(blocks.model.named_modules())
    own: Any = blocks.model
    embedding, head = own.get_input_embeddings(), own.get_output_embeddings()
    return Structure(
        path=blocks.path,
        sizes={"layers": len(blocks), "hidden": hidden} | {kind: group.units for kind, group in groups.items()},
        groups=groups,
        widths=rows | columns,
        embeddings=tuple(n for n, m in modules.items() if isinstance(m, nn.Embedding) and m.embedding_dim == hidden),
        norms=tuple(name for name, module in modules.items() if _is_norm(module, hidden)),
        head=next(name for name, module in modules.items() if module is head),
        tied=head.weight is embedding.weight,
    )


class TargetShape(NamedTuple):
    """The sizes to cut the model of `config` to; `target` maps each kind to the number that remains."""

    config: Mapping[str, Any]
    structure: Structure
    target: Mapping[str, int]

    def check(self, network: nn.Module) -> dict[str, Any]:
        """The configuration after the cut; needs only shapes of `network`, not weights.

        Raises RecipeError if the target removes nothing or leaves heads that do not divide the hidden size, and
        ModelRefused if transformers would build other shapes.
        """
        self._refuse_target()
        first = {kind: torch.arange(size) for kind, size in self.target.items()}
        layers = self.structure.sizes["layers"]
        kept = {
            kind: units.expand(layers, -1) if kind in self.structure.groups else units for kind, units in first.items()
        }
        model, _ = self.cut(network, dict(network.named_parameters()), kept)
        return model.config

    def cut(
        self, network: nn.Module, tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor]
    ) -> tuple[StageModel, tuple[int, ...]]:
        """Cut `tensors`, the parameters of `network` by name; returns the smaller model and the removed blocks.

        `kept` has the numbers of what remains: layers [n], hidden dimensions [n], and units of each block [layers, n].
        """
        layers = self.structure.sizes["layers"]
        removed = tuple(sorted({*range(layers)} - {*kept["layers"].tolist()})) if "layers" in kept else ()
        source = without(
            InMemory(cut_out(network, tensors, _cuts(self.structure, kept))), self.structure.path, removed, layers
        )
        config = self._shaped(removed)
        refuse_other_shapes(config, {name: tuple(source.tensor(name).shape) for name in source.names()})
        return StageModel(config, source), removed

    def _refuse_target(self) -> None:
        """Raise RecipeError for an impossible target."""
        structure, target = self.structure, self.target
        for kind, size in target.items():
            if size >= structure.sizes[kind]:
                raise RecipeError(
                    f"{kind} = {size} removes none of the model's {structure.sizes[kind]} {NAMES[kind]}: choose a "
                    f"smaller number, or leave {kind} out"
                )
        hidden, groups = (target.get(kind, structure.sizes[kind]) for kind in ("hidden", "kv_groups"))
        share = self.config["num_attention_heads"] // structure.sizes["kv_groups"]
        if hidden % (share * groups) == 0:
            return
        fitting = [str(n) for n in range(1, structure.sizes["kv_groups"] + 1) if hidden % (share * n) == 0]
        raise RecipeError(
            f"hidden = {hidden} with {share * groups} heads in {groups} KV groups: transformers requires the heads to "
            f"divide the hidden size; allowed: a multiple of {share * groups} for hidden, or for kv_groups "
            f"{', '.join(fitting) or 'none'}"
        )

    def _shaped(self, removed: tuple[int, ...]) -> dict[str, Any]:
        """The configuration of the target shape without the `removed` blocks."""
        structure, target = self.structure, self.target
        columns = structure.widths[structure.groups["kv_groups"].rowwise]
        result = dict(self.config)
        if "hidden" in target:
            result = with_hidden(result, columns, target["hidden"])
        if "kv_groups" in target:
            result = with_heads(result, columns, structure.sizes["kv_groups"], target["kv_groups"])
        if "ffn" in target:
            result = with_width(result, structure.sizes["ffn"], target["ffn"])
        return shortened(result, removed, structure.sizes["layers"]) if removed else result


def _cuts(structure: Structure, kept: Mapping[str, Tensor]) -> Iterator[Cut]:
    """The cut of every module, from the numbers `kept` of each kind."""
    hidden = kept.get("hidden")
    for index, prefix in structure.blocks():
        for kind, group in structure.groups.items():
            units = kept[kind][index] if kind in kept else None
            for name in group.colwise:
                yield Cut(prefix + name, None if units is None else structure.units(kind, units, name), hidden)
            columns = None if units is None else structure.units(kind, units, group.rowwise)
            yield Cut(prefix + group.rowwise, hidden, columns)
    if hidden is not None:
        yield from (Cut(name, outputs=hidden) for name in (*structure.embeddings, *structure.norms))
        yield Cut(structure.head, inputs=hidden)


def _is_norm(module: nn.Module, hidden: int) -> bool:
    """Whether all of the module's own parameters are vectors over the hidden dimensions."""
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    return bool(own) and not is_linear(module) and all(tuple(parameter.shape) == (hidden,) for parameter in own)
