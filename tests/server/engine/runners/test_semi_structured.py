"""The choice of 2:4 kernels with an injected clock; on CUDA, the kernels themselves."""

import pytest
import torch
from torch import Tensor, nn

from server.engine.runners import semi_structured
from server.engine.runners.semi_structured import ROW_COUNTS, Kernels, SemiStructuredLinear, install


def pruned(rows: int, columns: int) -> nn.Linear:
    """A linear layer whose first and third of every four columns are zero."""
    linear = nn.Linear(columns, rows)
    with torch.no_grad():
        linear.weight.view(rows, -1, 4)[:, :, ::2] = 0
    return linear


def kernels(gains: list[float]) -> Kernels:
    """Compression that doubles the weight, to be recognisable, and a clock on which it is `gains` times as fast."""

    def seconds(weight: Tensor, rows: int) -> float:
        return 1.0 if isinstance(weight, nn.Parameter) else 1.0 / gains[ROW_COUNTS.index(rows)]

    return Kernels(lambda weight: weight.detach() * 2, seconds)


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ([0.5, 0.8, 1.2, 1.5, 1.6], 32),
        ([1.1, 1.1, 1.1, 1.1, 1.1], 1),
        ([0.5, 0.5, 0.5, 0.5, 1.01], None),
        ([2.0, 2.0, 0.9, 1.5, 1.6], 128),  # one good size below a bad one is luck
        ([2.0, 2.0, 2.0, 2.0, 0.9], None),
    ],
)
def test_the_threshold_is_where_two_of_four_wins_from_there_on(gains: list[float], expected: int | None) -> None:
    model = nn.Sequential(pruned(64, 128), nn.Linear(128, 64), pruned(64, 128))
    layers = [layer for layer in model if isinstance(layer, nn.Linear)]
    choices = install(model, kernels(gains))
    assert [choice.subject for choice in choices] == ["2 layers of 64x128, 2:4"]
    assert f"512: {gains[-1]:.2f}" in choices[0].reason
    for index, (before, layer) in enumerate(zip(layers, model, strict=True)):
        if index == 1 or expected is None:
            assert layer is before
            continue
        assert isinstance(layer, SemiStructuredLinear)
        for rows in (expected - 1, expected):
            x = torch.randn(rows, 128)
            factor = 2 if rows >= expected else 1
            torch.testing.assert_close(layer(x), nn.functional.linear(x, before.weight * factor, before.bias))
    assert choices[0].value == ("dense" if expected is None else "semi-structured")


def test_rows_are_counted_over_all_leading_dimensions() -> None:
    layer = pruned(64, 128)
    model = nn.Sequential(layer)
    install(model, kernels([0.5, 2, 2, 2, 2]))
    x = torch.randn(2, 4, 128)
    torch.testing.assert_close(model(x), nn.functional.linear(x, layer.weight * 2, layer.bias))


@pytest.mark.parametrize("shape", [(48, 128), (64, 96)])
def test_shapes_the_kernel_cannot_take_stay_dense_and_say_so(shape: tuple[int, int]) -> None:
    model = nn.Sequential(pruned(*shape))
    (choice,) = install(model, kernels([2] * 5))
    assert (choice.value, type(model[0])) == ("dense", nn.Linear)
    assert "multiples of 32 rows and 64 columns" in choice.reason


def test_other_layers_are_left_alone() -> None:
    layer = pruned(64, 128)
    with torch.no_grad():
        layer.weight[63, 124:127] = 1.0
    assert install(nn.Sequential(layer, nn.Linear(6, 4)), kernels([2] * 5)) == ()


def test_on_this_machine_it_runs_or_says_what_is_missing() -> None:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layer = pruned(1024, 1024).to(device, torch.bfloat16)
    model = nn.Sequential(layer)
    x = torch.randn(512, 1024, device=device, dtype=torch.bfloat16)
    expected = model(x)
    (choice,) = install(model)
    torch.testing.assert_close(model(x), expected, rtol=0.02, atol=0.02)
    if device.type == "cpu":
        assert choice.reason == "1 layers are 2:4, but semi-structured kernels need CUDA and this is cpu"
    else:
        compressed = semi_structured._compress(layer.weight)
        torch.testing.assert_close(nn.functional.linear(x, compressed, layer.bias), expected, rtol=0.02, atol=0.02)


def test_old_cuda_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    assert "8.0, this has 7.5" in (semi_structured._unavailable(torch.device("cuda")) or "")
