"""Plans against transformers' own reading of a configuration: ropes, windows, and what is refused with its reason."""

from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from server.engine.native.plan import Refused
from server.engine.native.plan.decoder import Plan, plan_of
from server.engine.native.plan.families import FAMILIES
from server.engine.native.plan.rope import rope_of
from tests.server.engine.native.tiny import MODELS, Packed, tiny

TINY = {name: Packed(tiny(name)) for name in ("llama", "qwen2", "gemma3_text")}


def plan(name: str, **changes: Any) -> Plan:
    packed = TINY[name]
    return plan_of({**packed.config, **changes}, packed.names())


@pytest.mark.parametrize("name", MODELS)
def test_windows_and_ropes_are_those_that_the_layers_of_transformers_have(name: str) -> None:
    model = tiny(name)
    packed = Packed(model)
    found = plan_of(packed.config, packed.names())
    blocks: Any = model.get_submodule("model.layers")
    for layer, block in zip(found.layers, blocks, strict=True):
        attention = block.self_attn
        window = getattr(attention, "sliding_window", getattr(model.config, "sliding_window", None))
        assert layer.window == (window or 0)
        assert (layer.rope >= 0) == bool(getattr(attention, "use_rope", True))


@pytest.mark.parametrize("kind", FAMILIES)
def test_what_a_configuration_leaves_out_is_what_transformers_takes(kind: str) -> None:
    """The defaults of a family: the plan of a bare configuration is that of the one which transformers fills in."""
    bare: dict[str, Any] = {"model_type": kind, "hidden_size": 64, "intermediate_size": 96, "vocab_size": 50}
    bare |= {"num_hidden_layers": 8, "num_attention_heads": 4, "num_key_value_heads": 2, "pad_token_id": 0}
    config = CONFIG_MAPPING[kind].from_dict(bare)
    factory: Any = AutoModelForCausalLM
    with torch.device("meta"):
        names = set(factory.from_config(config).state_dict())
    full = {**config.to_dict(), "max_position_embeddings": None}
    assert plan_of(bare, names) == plan_of(full, names)


ROPES: dict[str, dict[str, Any]] = {
    "linear": {"factor": 3.0},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 64},
    "yarn, mscale": {"factor": 4.0, "original_max_position_embeddings": 64, "mscale": 1.0, "mscale_all_dim": 0.5},
    "yarn, untruncated": {"factor": 40.0, "original_max_position_embeddings": 64, "truncate": False, "beta_fast": 8},
}


@pytest.mark.parametrize("name", ROPES)
@pytest.mark.parametrize("old", [False, True])
def test_frequencies_are_those_of_transformers(name: str, old: bool) -> None:
    kind = name.split(",")[0]
    settings = {"rope_type": kind, **ROPES[name]}
    base = {"model_type": "llama", "hidden_size": 128, "num_attention_heads": 2, "max_position_embeddings": 256}
    config: Any = CONFIG_MAPPING["llama"].from_dict({**base, "rope_parameters": {"rope_theta": 5000.0, **settings}})
    frequencies, factor = ROPE_INIT_FUNCTIONS[kind](config, torch.device("cpu"))
    written = (
        {"rope_theta": 5000.0, "rope_scaling": settings}
        if old
        else {"rope_parameters": {"rope_theta": 5000.0, **settings}}
    )
    rope = rope_of({**base, **written}, 64, "full_attention")
    torch.testing.assert_close(torch.tensor(rope.frequencies), frequencies.float(), rtol=2e-6, atol=1e-12)
    assert rope.factor == pytest.approx(factor)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"model_type": "bloom"}, "models of type bloom have no plan; supported are llama, mistral"),
        ("llama", {"hidden_act": "relu"}, "its activation is relu"),
        ("llama", {"layer_types": ["chunked_attention"] * 2}, "layers of type chunked_attention"),
        ("llama", {"sliding_window": 5}, "a sliding window, which models of its type do not"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope type dynamic is not supported"),
        ("llama", {"rope_parameters": {"rope_type": "llama3"}}, "rope type llama3 needs 'factor'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            "partial_rotary_factor is not 1",
        ),
        ("llama", {"hidden_size": "64"}, "hidden_size is '64', which is not a positive integer"),
        ("llama", {"head_dim": 512}, "heads have 512 values; at most 256"),
        (
            "llama",
            {"attention_bias": True},
            r"it lacks weights: model\.layers\.0\.self_attn\.k_proj\.bias.* and 5 more",
        ),
        ("llama", {"num_hidden_layers": 1}, r"has unplanned weights: model\.layers\.1.* and 6 more"),
        ("llama", {"per_layer_config": {"0": {"intermediate_size": 5}}}, "differ by `per_layer_config`"),
        ("qwen2", {"layer_types": ["full_attention"], "use_sliding_window": True}, "has 1 entries for 2 layers"),
        ("gemma3_text", {"sliding_window": None}, "but no sliding_window"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "attention is bidirectional"),
    ],
)
def test_what_has_no_plan_is_refused_in_a_sentence(name: str, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Refused, match=said):
        plan(name, **changes)


def test_a_pruned_model_is_the_same_plan_with_other_numbers() -> None:
    packed = Packed(tiny("llama, pruned"))
    found = plan_of(packed.config, packed.names())
    assert (len(found.layers), found.numbers.vocabulary, found.sizes["up"]) == (1, 61, (72, 64))
