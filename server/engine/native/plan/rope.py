"""Rotary embedding frequencies, in radians per position, from a `config.json`.

Types that depend on the length of the text are refused, because keys are cached.
"""

import math
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from server.engine.native.plan import Refused


class Rope(Struct, frozen=True):
    """Rotates the first 2 * len(frequencies) values of a head, and scales them by `factor`."""

    frequencies: tuple[float, ...]
    factor: float = 1.0


def rope_of(values: Mapping[str, Any], width: int, layers: str) -> Rope:
    """The rope of layers of type `layers`, for heads of `width` values; raises Refused."""
    settings = _settings(values, layers)
    if float(settings.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0) != 1.0:
        raise Refused("its partial_rotary_factor is not 1, which is not supported")
    kind = str(settings.get("rope_type") or settings.get("type") or "default")
    base = float(settings["rope_theta"])
    plain = tuple(base ** (-index / width) for index in range(0, width, 2))
    try:
        if kind == "default":
            return Rope(plain)
        if kind == "linear":
            return Rope(tuple(frequency / float(settings["factor"]) for frequency in plain))
        if kind == "llama3":
            return Rope(tuple(_llama3(frequency, settings) for frequency in plain))
        if kind == "yarn":
            return _yarn(plain, base, values, settings)
    except KeyError as missing:
        raise Refused(f"its rope type {kind} needs {missing}") from None
    raise Refused(f"its rope type {kind} is not supported; default, linear, llama3 and yarn are")


def _settings(values: Mapping[str, Any], layers: str) -> dict[str, Any]:
    """The rope settings of a type of layers, in the current or the older form of `config.json`."""
    local = layers == "sliding_attention"
    theta = values.get("rope_local_base_freq" if local else "rope_theta") or 10000.0
    found = values.get("rope_parameters") or {}
    if layers in found or "full_attention" in found:
        found = found.get(layers) or {}
    elif not found and not local:  # the older form scales only full attention
        found = values.get("rope_scaling") or {}
    elif local:
        found = {}
    return {"rope_theta": theta, **{name: value for name, value in found.items() if value is not None}}


def _llama3(frequency: float, settings: Mapping[str, Any]) -> float:
    """Llama 3.1's scaling: low frequencies divided by `factor`, high ones kept, interpolated between."""
    factor, low, high = (float(settings[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(settings["original_max_position_embeddings"]) * frequency / (2 * math.pi)
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    smooth = (turns - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def _yarn(plain: tuple[float, ...], base: float, values: Mapping[str, Any], settings: Mapping[str, Any]) -> Rope:
    """YaRN (arXiv 2309.00071): interpolates frequencies of few turns in the original context, keeps the others."""
    width = 2 * len(plain)
    original = float(settings.get("original_max_position_embeddings") or values["max_position_embeddings"])
    factor = float(settings["factor"])

    def place(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    low, high = place(float(settings.get("beta_fast") or 32)), place(float(settings.get("beta_slow") or 1))
    if settings.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    span = (high - low) or 0.001
    ramps = [min(max((index - low) / span, 0.0), 1.0) for index in range(len(plain))]
    frequencies = tuple(
        frequency / factor * ramp + frequency * (1 - ramp) for frequency, ramp in zip(plain, ramps, strict=True)
    )
    return Rope(frequencies, _yarn_factor(factor, settings))


def _yarn_factor(factor: float, settings: Mapping[str, Any]) -> float:
    """YaRN's attention factor, by which queries and keys are scaled."""

    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if (given := settings.get("attention_factor")) is not None:
        return float(given)
    one, other = settings.get("mscale"), settings.get("mscale_all_dim")
    return grown(float(one)) / grown(float(other)) if one and other else grown(1.0)
