"""Plans a decoder from its `config.json`: which weights each layer uses, and the numbers of its arithmetic.

A plan is a plain value: a pruned model differs only in numbers. An unsupported model raises `Refused` with the reason.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any, Literal

import msgspec
from msgspec import Struct

from server.engine.native.rope import Refused, Rope, rope_of

__all__ = ["LayerPlan", "Numbers", "Plan", "Refused", "Rope", "plan_of"]

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
NORMS = {"before_attention": "input_layernorm", "before_mlp": "post_attention_layernorm"}
FOUR_NORMS = {
    "before_attention": "input_layernorm",
    "after_attention": "post_attention_layernorm",
    "before_mlp": "pre_feedforward_layernorm",
    "after_mlp": "post_feedforward_layernorm",
}
HEAD_NORMS = {"query_norm": "self_attn.q_norm", "key_norm": "self_attn.k_norm"}


class Family(Struct, frozen=True):
    """Defaults and architecture of one `model_type`."""

    defaults: Mapping[str, Any] = {}
    """Settings that a `config.json` may omit."""
    norms: Mapping[str, str] = msgspec.field(default_factory=NORMS.copy)
    one_plus: bool = False
    """Norms multiply by 1 + weight."""
    scaled_embedding: bool = False
    """Embeddings are multiplied by the square root of their width."""
    biases: tuple[str, ...] = ()
    """Projections that always have a bias, whatever the configuration says."""
    windows: Literal["none", "all", "typed", "switched"] = "none"
    """Which layers have a sliding window: `typed` follows `layer_types`; `switched` too, if `use_sliding_window`."""
    local_rope: bool = False
    """Layers with a window have their own rope."""


GEMMA = {"hidden_act": "gelu_pytorch_tanh", "head_dim": 256, "tie_word_embeddings": True}
GEMMA_TYPED = {**GEMMA, "sliding_window": 4096, "query_pre_attn_scalar": 256}
FAMILIES: Mapping[str, Family] = {
    "llama": Family(),
    "mistral": Family({"sliding_window": 4096, "num_key_value_heads": 8}, windows="all"),
    "qwen2": Family({"sliding_window": 4096}, biases=("query", "key", "value"), windows="switched"),
    "qwen3": Family({"sliding_window": 4096, "head_dim": 128}, {**NORMS, **HEAD_NORMS}, windows="switched"),
    "smollm3": Family({"rope_theta": 2e6, "tie_word_embeddings": True, "num_key_value_heads": 4}, windows="switched"),
    "gemma": Family(GEMMA, one_plus=True, scaled_embedding=True),
    "gemma2": Family(
        {**GEMMA_TYPED, "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "num_key_value_heads": 4},
        FOUR_NORMS,
        one_plus=True,
        scaled_embedding=True,
        windows="typed",
    ),
    "gemma3_text": Family(
        {**GEMMA_TYPED, "rope_theta": 1e6, "rope_local_base_freq": 1e4, "num_key_value_heads": 4},
        {**FOUR_NORMS, **HEAD_NORMS},
        one_plus=True,
        scaled_embedding=True,
        windows="typed",
        local_rope=True,
    ),
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
    windows = _windows(values, family, count)
    turns = _turns(values, count)
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
                rope=int(local) if turns[index] else -1,
            )
        )
    return tuple(layers)


def _windows(values: Mapping[str, Any], family: Family, count: int) -> list[int]:
    """The sliding window of each layer; 0: none."""
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
        turns = _turns(values, count)
        sliding = [not turn for turn in turns]
    elif family.windows == "switched":
        first = int(values.get("max_window_layers", 28))
        sliding = [index >= first for index in range(count)]
    else:
        every = 6 if family.local_rope else 2
        every = int(values.get("sliding_window_pattern") or values.get("_sliding_window_pattern") or every)
        sliding = [bool((index + 1) % every) for index in range(count)]
    return ["sliding_attention" if slides else "full_attention" for slides in sliding]


def _turns(values: Mapping[str, Any], count: int) -> list[bool]:
    """Which layers have a rope."""
    if values["model_type"] != "smollm3":
        return [True] * count
    every = int(values.get("no_rope_layer_interval") or 4)
    turns = values.get("no_rope_layers") or [(index + 1) % every for index in range(count)]
    if len(turns) != count:
        raise Refused(f"no_rope_layers has {len(turns)} entries for {count} layers")
    return [bool(turn) for turn in turns]


def _compare(plan: Plan, names: set[str]) -> None:
    """Refuse a plan that lacks a weight or leaves one unused."""
    tied = {"lm_head.weight"} if plan.head == plan.embedding else set()
    for what, wrong in (("lacks", plan.names - names), ("has unplanned", names - plan.names - tied)):
        if wrong:
            first = ", ".join(sorted(wrong)[:3])
            raise Refused(f"it {what} weights: {first}{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}")
