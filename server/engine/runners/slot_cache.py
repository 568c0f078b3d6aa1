"""A KV cache for transformers models, and the attention function that writes and reads it.

A batch is one row of ids, so linear layers compute all sequences at once; only attention separates them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from server.engine.batch import Batch, Chunk
from server.engine.blocks import BLOCK, CacheSize
from server.errors import ArtifactError

UNSUPPORTED = (
    "softcap",
    "s_aux",
    "sinks",
    "position_bias",
    "alibi",
)  # options it would silently ignore

Places = range | Tensor
"""Rows of the cache: a range if consecutive, else int64 [positions]."""


class SlotCache:
    """Keys and values [positions, kv_heads, head_dim] of each layer, allocated when the layer first writes."""

    def __init__(self, slots: int, context: int) -> None:
        self.slots = slots
        self.size = CacheSize(slots, context)
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, rows: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values [kv_heads, tokens, head_dim] at `rows` [tokens] of the layer."""
        if layer not in self._layers:
            self._layers[layer] = (self._allocate(keys), self._allocate(values))
        stored_keys, stored_values = self._layers[layer]
        stored_keys.index_copy_(0, rows, keys.transpose(0, 1))
        stored_values.index_copy_(0, rows, values.transpose(0, 1))

    def read(self, layer: int, places: Places) -> tuple[Tensor, Tensor]:
        """Keys and values [1, kv_heads, positions, head_dim] at `places`; views if these are a range."""
        pair = (
            stored.narrow(0, places.start, len(places)) if isinstance(places, range) else stored.index_select(0, places)
            for stored in self._layers[layer]
        )
        keys, values = pair
        return keys.transpose(0, 1).unsqueeze(0), values.transpose(0, 1).unsqueeze(0)

    def _allocate(self, like: Tensor) -> Tensor:
        heads, _, width = like.shape
        return torch.zeros(self.size.count * BLOCK, heads, width, dtype=like.dtype, device=like.device)


class Step:
    """One batch as attention needs it: the cache row of each id, and masks, made once for all layers."""

    def __init__(self, batch: Batch, cache: SlotCache, device: torch.device) -> None:
        self.batch = batch
        self.cache = cache
        self.device = device
        self._tables = {chunk.slot: cache.size.table(chunk.slot, chunk.blocks) for chunk in batch.chunks}
        rows = [row for chunk in batch.chunks for row in self._rows(chunk, chunk.start)]
        self.rows = torch.tensor(rows, device=device)
        self._places: dict[tuple[int, int], Places] = {}
        self._masks: dict[tuple[int, int, int | None], Tensor | None] = {}

    def places(self, chunk: Chunk, start: int) -> Places:
        """The cache rows of the chunk's sequence from position `start` on."""
        key = (chunk.slot, start)
        if key not in self._places:
            rows = self._rows(chunk, start)
            together = range(rows[0], rows[0] + len(rows))
            follow = rows == list(together)
            self._places[key] = together if follow else torch.tensor(rows, device=self.device)
        return self._places[key]

    def _rows(self, chunk: Chunk, start: int) -> list[int]:
        table = self._tables[chunk.slot]
        return [table[place // BLOCK] * BLOCK + place % BLOCK for place in range(start, chunk.end)]

    def mask(self, chunk: Chunk, group: int, window: int | None) -> Tensor | None:
        """True where a query attends: [group * queries, keys]; None while decoding, where it attends everywhere."""
        key = (chunk.slot, group, window)
        if key not in self._masks:
            self._masks[key] = None if len(chunk.ids) == 1 else self._visible(chunk, window).repeat(group, 1)
        return self._masks[key]

    def _visible(self, chunk: Chunk, window: int | None) -> Tensor:
        queries = torch.arange(chunk.start, chunk.end, device=self.device).unsqueeze(1)
        keys = torch.arange(first_visible(chunk, window), chunk.end, device=self.device)
        causal = keys <= queries
        return causal if window is None else causal & (keys > queries - window)


def first_visible(chunk: Chunk, window: int | None) -> int:
    """The first position that the chunk's first query attends to."""
    return 0 if window is None else max(0, chunk.start + 1 - window)


def slot_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """Attend each chunk's queries [1, heads, tokens, head_dim] to its prefix; returns [1, tokens, heads, width].

    An attention function in the interface of transformers; the model passes `step` through its keyword arguments."""
    refuse_unknown(module, options)
    step: Step = options["step"]
    layer = module.layer_idx
    assert isinstance(layer, int)
    step.cache.write(layer, step.rows, key[0], value[0])
    outputs = []
    offset = 0
    for chunk in step.batch.chunks:
        queries = query[0, :, offset : offset + len(chunk.ids)]
        outputs.append(_attend(queries, layer, chunk, step, options))
        offset += len(chunk.ids)
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs)).unsqueeze(0), None


def _attend(query: Tensor, layer: int, chunk: Chunk, step: Step, options: dict[str, Any]) -> Tensor:
    """Attention of one chunk: query [heads, tokens, head_dim] -> [tokens, heads, width]."""
    heads, tokens, width = query.shape
    window = options.get("sliding_window")
    keys, values = step.cache.read(layer, step.places(chunk, first_visible(chunk, window)))
    kv_heads = keys.shape[1]
    group = heads // kv_heads
    # Grouped heads become queries of one head: 5 times as fast as repeating the keys (bf16, CPU).
    folded = query.reshape(1, kv_heads, group * tokens, width)
    mask = step.mask(chunk, group, window)
    output = functional.scaled_dot_product_attention(folded, keys, values, attn_mask=mask, scale=options.get("scaling"))
    return output.reshape(heads, tokens, -1).transpose(0, 1)


def refuse_unknown(module: nn.Module, options: dict[str, Any]) -> None:
    """Raise ArtifactError if the model passes an attention option that is not implemented."""
    if options.get("sliding_window") is None and is_sliding(module):
        raise ArtifactError("The model's attention does not pass the width of its sliding window; it cannot run here.")
    for name in UNSUPPORTED:
        if options.get(name) is not None:
            raise ArtifactError(f"The model's attention uses `{name}`, which this server does not compute.")


def is_sliding(module: nn.Module) -> bool:
    """Whether the configuration gives this layer a sliding window, which some models put only into their masks."""
    config = getattr(module, "config", None)
    if types := getattr(config, "layer_types", None):
        return bool(types[module.layer_idx] == "sliding_attention")
    return getattr(config, "sliding_window", None) is not None
