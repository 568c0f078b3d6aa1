"""The constructors of the C++ model: every argument is checked by name and by type."""

from typing import Any

import numpy
import pytest

from server.engine.native import absent, core

pytestmark = pytest.mark.skipif(absent() is not None, reason=f"{absent()}")

ONES = numpy.ones(64, numpy.float32)
ANGLES = numpy.zeros((5, 8), numpy.float32)
MATRICES = ("query", "key", "value", "output", "gate", "up", "down")


def weight() -> Any:
    """A 64 x 64 matrix of bfloat16 zeros."""
    values = numpy.zeros(64 * 64 * 2, numpy.uint8)
    lines = {"values": values, "mask": None, "scales": None, "offsets": None}
    return core().Weight(kind="bf16", rows=64, columns=64, keep=64, group=64, **lines)


def layer(**changes: Any) -> Any:
    matrices = {name: weight() for name in MATRICES}
    given = {"window": 0, "rope": 0, "before_attention": ONES, "before_mlp": ONES, **matrices, **changes}
    return core().Layer(**{name: value for name, value in given.items() if value is not ...})


def model(**changes: Any) -> Any:
    given = {
        "hidden": 64,
        "head_width": 16,
        "vocabulary": 64,
        "positions": 5,
        "epsilon": 1e-5,
        "embedding_scale": 1.0,
        "attention_scale": 0.25,
        "attention_cap": 0,
        "logit_cap": 0.0,
        "activation": "silu",
        "embedding": weight(),
        "head": weight(),
        "norm": ONES,
        "ropes": [core().Rope(cosines=ANGLES, sines=ANGLES)],
        "layers": [layer()],
        **changes,
    }
    return core().Model(**{name: value for name, value in given.items() if value is not ...})


def step(made: Any) -> Any:
    instructions, _ = core().choose()
    return core().Step(made, tokens=3, blocks=1, eight_bits=False, pool=core().Pool(1), set=instructions)


def test_a_step_keeps_its_weights_and_its_pool_alive() -> None:
    """All weights are zeros, so any other logit was read from memory that was freed."""
    made = step(model())
    kept = [numpy.full(64 * 64 * 2, 255, numpy.uint8) for _ in range(50)]  # reuses memory that was freed
    logits = numpy.full((1, 64), numpy.nan, numpy.float32)
    made.run(
        numpy.zeros(1, numpy.int32), numpy.array([[0, 1, 1]], numpy.int32), numpy.zeros((1, 1), numpy.int32), logits
    )
    assert not logits.any()
    assert len(kept) == 50


@pytest.mark.parametrize(
    ("make", "changes", "said"),
    [
        (layer, {"windw": 3}, "Layer has no argument 'windw'"),
        (layer, {"window": ...}, "Layer needs the argument 'window'"),
        (layer, {"window": 1.5}, "Layer got another type for 'window'"),
        (layer, {"up": ...}, "Layer needs the argument 'up'"),
        (layer, {"up": ONES}, "Layer got another type for 'up'"),
        (layer, {"before_mlp": ...}, "Layer needs the argument 'before_mlp'"),
        (layer, {"query_norm": "ones"}, "Layer got another type for 'query_norm'"),
        (layer, {"query_norms": ONES}, "Layer has no argument 'query_norms'"),
        (model, {"epsilon": ...}, "Model needs the argument 'epsilon'"),
        (model, {"epsilon": "small"}, "Model got another type for 'epsilon'"),
        (model, {"hidden": 64.0}, "Model got another type for 'hidden'"),
        (model, {"logit_capp": 3.0}, "Model has no argument 'logit_capp'"),
        (model, {"layers": layer}, "Model got another type for 'layers'"),
        (model, {"layers": [3]}, "Model got another type for 'layers'"),
        (model, {"ropes": [None]}, "Model got another type for 'ropes'"),
    ],
)
def test_a_missing_unknown_or_mistyped_argument_is_named(make: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        make(**changes)


def test_values_that_do_not_fit_are_named() -> None:
    with pytest.raises(ValueError, match="no activation relu: choose silu or gelu_tanh"):
        model(activation="relu")
    with pytest.raises(ValueError, match="embedding is 64 x 64 where 65 x 64 is needed"):
        step(model(vocabulary=65))
    with pytest.raises(ValueError, match="window or rope is out of range"):
        step(model(layers=[layer(rope=1)]))
