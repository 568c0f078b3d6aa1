"""Plans a decoder from its `config.json`: which weights each layer uses, and the numbers of its arithmetic.

A plan is a plain value: a pruned model differs only in numbers. An unsupported model raises `Refused` with the reason.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

from msgspec import Struct

from server.engine.native.plan import Refused
from server.engine.native.plan.families import FAMILIES, Family
from server.engine.native.plan.layer_types import has_rope, windows_of
from server.engine.native.plan.rope import Rope, rope_of

WIDEST_HEAD = 256
ACTIVATIONS: Mapping[str, Literal["silu", "gelu_tanh"]] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
}
ATTENTION = ("query", "key", "value", "output")
FEED_FORWARD = ("gate", "up", "down")
PROJECTIONS = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.o_proj",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


class LayerPlan(Struct, frozen=True):
    """One layer: names of its weights by the argument of the C++ `Layer` that takes them."""

    matrices: Mapping[str, str]
    norms: Mapping[str, str]
    biases: Mapping[str, str]
    window: int
    """Positions that a query attends to; 0: all."""
    rope: int
    """Index into `Plan.ropes`; -1: none."""


class Numbers(Struct, frozen=True):
    """The arguments of the C++ `Model` that are plain numbers, under the same names."""

    hidden: int
    head_width: int
    vocabulary: int
    epsilon: float
    embedding_scale: float
    attention_scale: float
    attention_cap: float
    """Scores become cap * tanh(score / cap); 0: unchanged."""
    logit_cap: float
    activation: Literal["silu", "gelu_tanh"]


class Plan(Struct, frozen=True):
    """A decoder as the native step computes it."""

    numbers: Numbers
    heads: int
    key_heads: int
    feed_forward: int
    positions: int
    """The longest context that the model was trained for."""
    one_plus: bool
    """Norms multiply by 1 + weight."""
    ropes: tuple[Rope, ...]
    embedding: str
    head: str
    norm: str
    layers: tuple[LayerPlan, ...]

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Rows and columns of each matrix of a layer."""
        hidden, width = self.numbers.hidden, self.numbers.head_width
        queries, keys = self.heads * width, self.key_heads * width
        return {
            "query": (queries, hidden),
            "key": (keys, hidden),
            "value": (keys, hidden),
            "output": (hidden, queries),
            "gate": (self.feed_forward, hidden),
            "up": (self.feed_forward, hidden),
            "down": (hidden, self.feed_forward),
        }

    @property
    def names(self) -> frozenset[str]:
        """Every weight that the decoder uses."""
        layers = [
            name
            for layer in self.layers
            for part in (layer.matrices, layer.norms, layer.biases)
            for name in part.values()
        ]
        return frozenset((self.embedding, self.head, self.norm, *layers))

    def cache_bytes(self, positions: int, bits: int) -> int:
        """Bytes of the keys and values of `positions` at `bits` each, without scales and alignment."""
        return 2 * len(self.layers) * self.key_heads * self.numbers.head_width * positions * bits // 8


def plan_of(config: Mapping[str, Any], names: Collection[str]) -> Plan:
    """The plan of a model with this configuration whose weights have these `names`; raises Refused."""
    kind = str(config.get("model_type"))
    family = FAMILIES.get(kind)
    if family is None:
        raise Refused(f"models of type {kind} have no plan; supported are {', '.join(FAMILIES)}")
    values = {**family.defaults, **config}
    _check(values)
    heads = _count(values, "num_attention_heads")
    hidden = _count(values, "hidden_size")
    width = int(values.get("head_dim") or hidden // heads)
    ropes = [rope_of(values, width, "full_attention")]
    if family.local_rope:
        ropes.append(rope_of(values, width, "sliding_attention"))
    numbers = Numbers(
        hidden=hidden,
        head_width=width,
        vocabulary=_count(values, "vocab_size"),
        epsilon=float(values.get("rms_norm_eps") or 1e-6),
        embedding_scale=math.sqrt(hidden) if family.scaled_embedding else 1.0,
        attention_scale=float(values.get("query_pre_attn_scalar") or width) ** -0.5,
        attention_cap=float(values.get("attn_logit_softcapping") or 0),
        logit_cap=float(values.get("final_logit_softcapping") or 0),
        activation=_activation(values),
    )
    plan = Plan(
        numbers=numbers,
        heads=heads,
        key_heads=int(values.get("num_key_value_heads") or heads),
        feed_forward=_count(values, "intermediate_size"),
        positions=int(values.get("max_position_embeddings") or 2048),
        one_plus=family.one_plus,
        ropes=tuple(ropes),
        embedding="model.embed_tokens.weight",
        head="model.embed_tokens.weight" if values.get("tie_word_embeddings") else "lm_head.weight",
        norm="model.norm.weight",
        layers=_layers(values, family),
    )
    _compare(plan, set(names))
    return plan


def _check(values: Mapping[str, Any]) -> None:
    """Refuse settings that the step would ignore."""
    if values.get("use_bidirectional_attention"):
        raise Refused("its attention is bidirectional")
    if values.get("per_layer_config"):
        raise Refused("its layers differ by `per_layer_config`")
    if (values.get("head_dim") or 0) > WIDEST_HEAD:
        raise Refused(f"its heads have {values['head_dim']} values; at most {WIDEST_HEAD} are supported")
    if unknown := set(values.get("layer_types") or ()) - {"full_attention", "sliding_attention"}:
        raise Refused(f"it has layers of type {', '.join(sorted(unknown))}")


def _count(values: Mapping[str, Any], name: str) -> int:
    value = values.get(name)
    if not isinstance(value, int) or value < 1:
        raise Refused(f"config.json: {name} is {value!r}, which is not a positive integer")
    return value


def _activation(values: Mapping[str, Any]) -> Literal["silu", "gelu_tanh"]:
    name = str(values.get("hidden_activation") or values.get("hidden_act") or "silu")
    if name not in ACTIVATIONS:
        raise Refused(f"its activation is {name}; supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _layers(values: Mapping[str, Any], family: Family) -> tuple[LayerPlan, ...]:
    count = _count(values, "num_hidden_layers")
    windows = windows_of(values, family, count)
    ropes = has_rope(values, count)
    biased = {*family.biases}
    biased |= {*ATTENTION} if values.get("attention_bias") else set()
    biased |= {*FEED_FORWARD} if values.get("mlp_bias") else set()
    layers = []
    for index in range(count):
        prefix = f"model.layers.{index}."
        local = family.local_rope and windows[index] > 0
        layers.append(
            LayerPlan(
                matrices={use: f"{prefix}{name}.weight" for use, name in PROJECTIONS.items()},
                norms={use: f"{prefix}{name}.weight" for use, name in family.norms.items()},
                biases={f"{use}_bias": f"{prefix}{PROJECTIONS[use]}.bias" for use in PROJECTIONS if use in biased},
                window=windows[index],
                rope=int(local) if ropes[index] else -1,
            )
        )
    return tuple(layers)


def _compare(plan: Plan, names: set[str]) -> None:
    """Refuse a plan that lacks a weight or leaves one unused."""
    tied = {"lm_head.weight"} if plan.head == plan.embedding else set()
    for what, wrong in (("lacks", plan.names - names), ("has unplanned", names - plan.names - tied)):
        if wrong:
            first = ", ".join(sorted(wrong)[:3])
            raise Refused(f"it {what} weights: {first}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}")
