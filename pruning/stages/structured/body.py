"""The residual stream of a whole model and the units of its blocks: what can be masked, and cut to a target shape.

The stream is what embeddings and rowwise layers write, and norms, colwise layers and the head read. Knows no
architecture: the layers come from the tensor-parallel plan, the rest from transformers' own accessors and from shapes;
what was not found right shows when a model that was cut is compared with the masked one.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused, RecipeError
from pruning.model.blocks import Blocks, is_linear, weight_of
from pruning.model.weights import InMemory
from pruning.stages.context import Model
from pruning.stages.structured.depth import shortened, without
from pruning.stages.structured.groups import Group, attention, feed_forward, local_linears
from pruning.stages.structured.surgery import (
    Cut,
    cut_out,
    refuse_other_shapes,
    spread,
    with_heads,
    with_hidden,
    with_width,
)

NAMES = {"layers": "layers", "hidden": "hidden dimensions", "kv_groups": "KV groups", "ffn": "feed-forward units"}


class Body(NamedTuple):
    """Where a model can be cut; modules are known by their names in it."""

    path: str
    """Of the blocks."""
    sizes: Mapping[str, int]
    """How many layers, hidden dimensions, and KV groups and feed-forward units in each layer there are."""
    groups: Mapping[str, Group]
    """Those of each block that have units: `kv_groups` and `ffn`."""
    widths: Mapping[str, int]
    """Rows of each colwise and columns of each rowwise layer in a block."""
    embeddings: tuple[str, ...]
    norms: tuple[str, ...]
    head: str
    tied: bool
    """Whether the head's weight is the embedding's."""

    def blocks(self) -> Iterator[tuple[int, str]]:
        """The number of each block and what the names of its modules begin with."""
        return ((index, f"{self.path}.{index}.") for index in range(self.sizes["layers"]))

    def per_layer(self, kind: str) -> tuple[int, ...]:
        """The shape of one number for each unit: [units], or [layers, units] where every layer has its own."""
        return (self.sizes["layers"], self.sizes[kind]) if kind in self.groups else (self.sizes[kind],)

    def units(self, kind: str, kept: Tensor, layer: str) -> Tensor:
        """The rows or columns of `layer`, in the group `kind`, that belong to the units `kept`."""
        return spread(kept, self.widths[layer] // self.groups[kind].units)


def find_body(blocks: Blocks, named: Mapping[str, str], config: Mapping[str, Any]) -> Body:
    """The body of a model; raises ModelRefused where its layers are not those of a plan."""
    hidden = config.get("hidden_size")
    if hidden is None:
        raise ModelRefused("config.json names no hidden_size, so the residual stream cannot be cut")
    groups = {"kv_groups": attention(blocks, named, config), "ffn": feed_forward(blocks, named)}
    linears = local_linears(blocks, 0)
    rows = {name: weight_of(linears[name]).shape[0] for group in groups.values() for name in group.colwise}
    columns = {group.rowwise: weight_of(linears[group.rowwise]).shape[1] for group in groups.values()}
    modules = dict(blocks.model.named_modules())
    own: Any = blocks.model
    embedding, head = own.get_input_embeddings(), own.get_output_embeddings()
    return Body(
        path=blocks.path,
        sizes={"layers": len(blocks), "hidden": hidden} | {kind: group.units for kind, group in groups.items()},
        groups=groups,
        widths=rows | columns,
        embeddings=tuple(n for n, m in modules.items() if isinstance(m, nn.Embedding) and m.embedding_dim == hidden),
        norms=tuple(name for name, module in modules.items() if _is_norm(module, hidden)),
        head=next(name for name, module in modules.items() if module is head),
        tied=head.weight is embedding.weight,
    )


class Shape(NamedTuple):
    """What a model with `config` is to be cut to: how much stays of each kind that is cut."""

    config: Mapping[str, Any]
    body: Body
    target: Mapping[str, int]

    def check(self, network: nn.Module) -> dict[str, Any]:
        """The configuration afterwards, whatever stays.

        Raises RecipeError where the target takes nothing away or leaves heads that do not divide the hidden size, and
        ModelRefused where transformers would make other shapes of `network`, whose weights are not looked at.
        """
        self._refuse_target()
        first = {kind: torch.arange(size) for kind, size in self.target.items()}
        layers = self.body.sizes["layers"]
        kept = {kind: units.expand(layers, -1) if kind in self.body.groups else units for kind, units in first.items()}
        model, _ = self.cut(network, dict(network.named_parameters()), kept)
        return model.config

    def cut(
        self, network: nn.Module, tensors: Mapping[str, Tensor], kept: Mapping[str, Tensor]
    ) -> tuple[Model, tuple[int, ...]]:
        """What is left of `tensors`, the parameters of `network`, and the blocks that are taken out.

        `kept` numbers what stays: layers [n], hidden dimensions [n], and units of each block [layers, n].
        """
        layers = self.body.sizes["layers"]
        removed = tuple(sorted({*range(layers)} - {*kept["layers"].tolist()})) if "layers" in kept else ()
        source = without(InMemory(cut_out(network, tensors, _cuts(self.body, kept))), self.body.path, removed, layers)
        config = self._shaped(removed)
        refuse_other_shapes(config, {name: tuple(source.tensor(name).shape) for name in source.names()})
        return Model(config, source), removed

    def _refuse_target(self) -> None:
        """Raise RecipeError where the target cannot be."""
        body, target = self.body, self.target
        for kind, size in target.items():
            if size >= body.sizes[kind]:
                raise RecipeError(
                    f"{kind} = {size} is to stay of the model's {body.sizes[kind]} {NAMES[kind]}: name a smaller "
                    f"number, or leave {kind} out"
                )
        hidden, groups = (target.get(kind, body.sizes[kind]) for kind in ("hidden", "kv_groups"))
        share = self.config["num_attention_heads"] // body.sizes["kv_groups"]
        if hidden % (share * groups) == 0:
            return
        fitting = [str(n) for n in range(1, body.sizes["kv_groups"] + 1) if hidden % (share * n) == 0]
        raise RecipeError(
            f"hidden = {hidden} with {share * groups} heads in {groups} KV groups: transformers asks that the heads "
            f"divide the hidden size; allowed: a multiple of {share * groups} for hidden, or for kv_groups "
            f"{', '.join(fitting) or 'none'}"
        )

    def _shaped(self, removed: tuple[int, ...]) -> dict[str, Any]:
        """The configuration without the `removed` blocks."""
        body, target = self.body, self.target
        columns = body.widths[body.groups["kv_groups"].rowwise]
        result = dict(self.config)
        if "hidden" in target:
            result = with_hidden(result, columns, target["hidden"])
        if "kv_groups" in target:
            result = with_heads(result, columns, body.sizes["kv_groups"], target["kv_groups"])
        if "ffn" in target:
            result = with_width(result, body.sizes["ffn"], target["ffn"])
        return shortened(result, removed, body.sizes["layers"]) if removed else result


def _cuts(body: Body, kept: Mapping[str, Tensor]) -> Iterator[Cut]:
    """What stays of every module where `kept` is what stays of the body."""
    hidden = kept.get("hidden")
    for index, prefix in body.blocks():
        for kind, group in body.groups.items():
            units = kept[kind][index] if kind in kept else None
            for name in group.colwise:
                yield Cut(prefix + name, None if units is None else body.units(kind, units, name), hidden)
            columns = None if units is None else body.units(kind, units, group.rowwise)
            yield Cut(prefix + group.rowwise, hidden, columns)
    if hidden is not None:
        yield from (Cut(name, outputs=hidden) for name in (*body.embeddings, *body.norms))
        yield Cut(body.head, inputs=hidden)


def _is_norm(module: nn.Module, hidden: int) -> bool:
    """Whether `module` has parameters of its own, all of which are vectors over the hidden dimensions."""
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    return bool(own) and not is_linear(module) and all(tuple(parameter.shape) == (hidden,) for parameter in own)
