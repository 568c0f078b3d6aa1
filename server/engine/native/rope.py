"""The angles by which queries and keys are turned at each position, from what `config.json` says of them.

Frequencies are radians a position. Types that change with the length of the text are refused: keys are kept.
"""

import math
from collections.abc import Mapping
from typing import Any

from msgspec import Struct


class Refused(Exception):
    """The native step has no plan for a model; the message says why."""


class Rope(Struct, frozen=True):
    """Turns the first 2 * len(frequencies) values of a head, and multiplies them by `factor`."""

    frequencies: tuple[float, ...]
    factor: float = 1.0


def rope_of(values: Mapping[str, Any], width: int, layers: str) -> Rope:
    """The rope of the `layers` of one type, for heads of `width` values; raises Refused."""
    settings = _settings(values, layers)
    if float(settings.get("partial_rotary_factor") or values.get("partial_rotary_factor") or 1.0) != 1.0:
        raise Refused("it turns only a part of each head, which its kind of model does not")
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
        raise Refused(f"rope type {kind} needs {missing}") from None
    raise Refused(f"rope type {kind} has no plan; there is one for default, linear, llama3 and yarn")


def _settings(values: Mapping[str, Any], layers: str) -> dict[str, Any]:
    """The settings in force for the layers of a type, whether the configuration is written the new way or the old."""
    local = layers == "sliding_attention"
    theta = values.get("rope_local_base_freq" if local else "rope_theta") or 10000.0
    found = values.get("rope_parameters") or {}
    if layers in found or "full_attention" in found:
        found = found.get(layers) or {}
    elif not found and not local:  # the old way scales the layers that see all
        found = values.get("rope_scaling") or {}
    elif local:
        found = {}
    return {"rope_theta": theta, **{name: value for name, value in found.items() if value is not None}}


def _llama3(frequency: float, settings: Mapping[str, Any]) -> float:
    """Long waves are stretched by `factor`, short ones stay, and those between go over smoothly."""
    factor, low, high = (float(settings[name]) for name in ("factor", "low_freq_factor", "high_freq_factor"))
    turns = float(settings["original_max_position_embeddings"]) * frequency / (2 * math.pi)
    if turns < low:
        return frequency / factor
    if turns > high:
        return frequency
    smooth = (turns - low) / (high - low)
    return (1 - smooth) * frequency / factor + smooth * frequency


def _yarn(plain: tuple[float, ...], base: float, values: Mapping[str, Any], settings: Mapping[str, Any]) -> Rope:
    """YaRN: interpolates frequencies that turn seldom within the original context, keeps those that turn often."""
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
    """By how much queries and keys grow."""

    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    if (given := settings.get("attention_factor")) is not None:
        return float(given)
    one, other = settings.get("mscale"), settings.get("mscale_all_dim")
    return grown(float(one)) / grown(float(other)) if one and other else grown(1.0)
