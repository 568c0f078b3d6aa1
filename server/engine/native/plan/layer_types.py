"""Which layers of a decoder have a sliding window, and which apply rotary embeddings (RoPE)."""

from collections.abc import Mapping
from typing import Any

from server.engine.native.plan import Refused
from server.engine.native.plan.families import Family


def windows_of(values: Mapping[str, Any], family: Family, count: int) -> list[int]:
    """The sliding window of each layer in positions; 0: none. Raises Refused."""
    width = int(values.get("sliding_window") or 0)
    types = values.get("layer_types")
    if family.windows == "none":
        if width or "sliding_attention" in (types or ()):
            raise Refused("it has a sliding window, which models of its type do not")
        return [0] * count
    if family.windows == "all":
        if types:
            raise Refused("it has layer_types, which models of its type do not")
        return [width] * count
    if family.windows == "switched" and not values.get("use_sliding_window"):
        return [0] * count
    types = types or _default_types(values, family, count)
    if len(types) != count:
        raise Refused(f"layer_types has {len(types)} entries for {count} layers")
    if not width and "sliding_attention" in types:
        raise Refused("it has layers with a sliding window but no sliding_window")
    return [width if name == "sliding_attention" else 0 for name in types]


def _default_types(values: Mapping[str, Any], family: Family, count: int) -> list[str]:
    """The default of `layer_types`."""
    if values["model_type"] == "smollm3":
        sliding = [not rope for rope in has_rope(values, count)]
    elif family.windows == "switched":
        first = int(values.get("max_window_layers", 28))
        sliding = [index >= first for index in range(count)]
    else:
        every = 6 if family.local_rope else 2
        every = int(values.get("sliding_window_pattern") or values.get("_sliding_window_pattern") or every)
        sliding = [bool((index + 1) % every) for index in range(count)]
    return ["sliding_attention" if slides else "full_attention" for slides in sliding]


def has_rope(values: Mapping[str, Any], count: int) -> list[bool]:
    """Whether each layer applies rotary embeddings (RoPE). Raises Refused."""
    if values["model_type"] != "smollm3":
        return [True] * count
    every = int(values.get("no_rope_layer_interval") or 4)
    ropes = values.get("no_rope_layers") or [(index + 1) % every for index in range(count)]  # 1: has a rope
    if len(ropes) != count:
        raise Refused(f"no_rope_layers has {len(ropes)} entries for {count} layers")
    return [bool(rope) for rope in ropes]
