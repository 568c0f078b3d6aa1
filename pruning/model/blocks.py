"""Finds the blocks of a model and runs them one at a time, bit-identical to the model's own forward.

Knows no architecture: the blocks are the outermost `nn.ModuleList` with the most weights, and `Blocks.check` compares
a replay with the model's own forward; a model that differs is refused.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused, refusing
from pruning.model.weights import WeightSource

LINEAR_SHARE = 0.8
"""Minimum fraction of a block's weights in linear layers; models with fused experts, for instance, have less."""


class Call(NamedTuple):
    """The arguments with which the model called one block, without the hidden state, which is the first."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def split(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, "Call"]:
        """The hidden state [B, T, hidden] and the other arguments of a call."""
        if args:
            return args[0], cls(args[1:], kwargs)
        return kwargs["hidden_states"], cls((), {k: v for k, v in kwargs.items() if k != "hidden_states"})


class Blocks:
    """The blocks of `model`, a skeleton on the meta device whose weights are loaded from `source` when needed.

    Raises ModelRefused where there are no prunable blocks or `source` lacks weights.
    """

    def __init__(self, model: nn.Module, source: WeightSource) -> None:
        self.model = model
        self.path, self._stack = prunable_blocks(model)
        self._source = source
        self._names = _source_names(model, source)
        self._extras: list[tuple[Any, ...] | None] = [None] * len(self._stack)  # outputs of a block beside the state

    def __len__(self) -> int:
        return len(self._stack)

    def linears(self, index: int) -> dict[str, nn.Module]:
        """The linear layers of one block, by the full names of their weights."""
        modules = self._stack[index].named_modules(prefix=f"{self.path}.{index}")
        return {f"{name}.weight": module for name, module in modules if is_linear(module)}

    @contextmanager
    def loaded(self, index: int) -> Iterator[nn.Module]:
        """Context manager: one block with its weights in memory, float32."""
        prefix = f"{self.path}.{index}."
        with self._placed(name for name in self._names if name.startswith(prefix)):
            yield self._stack[index]

    def capture(self, ids: Tensor) -> tuple[Tensor, list[Call]]:
        """Embed `ids` [B, T]: the hidden state [B, T, hidden] before block 0, and the call of each block."""
        states: list[Tensor] = []
        calls: list[Call] = []

        def recorder(index: int, _: Callable[..., Any]) -> Callable[..., Any]:
            def record(*args: Any, **kwargs: Any) -> Any:
                hidden, call = Call.split(args, kwargs)
                states.append(hidden)
                calls.append(call)
                if index == len(self) - 1:
                    raise _Captured
                return _with_extras(hidden, self._extras[index])

            return record

        with suppress(_Captured):
            self._forward(ids, recorder)
        return states[0], calls

    def run(self, index: int, states: Tensor, call: Call, *, graph: bool = False) -> Tensor:
        """The states after one loaded block, from `states` [B, T, hidden] before it; `graph` records gradients."""
        with torch.set_grad_enabled(graph):
            return _state(self._stack[index](states, *call.args, **call.kwargs))

    @contextmanager
    def ending(self) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
        """Context manager: a function from `states` [B, T, hidden] after the last block to logits [B, T, vocabulary].

        Its second argument is the `ids` [B, T] of the states. Holds the weights outside the blocks in memory.
        """
        last: list[Tensor] = []

        def passer(index: int, _: Callable[..., Any]) -> Callable[..., Any]:
            def skip(*args: Any, **kwargs: Any) -> Any:
                hidden = last[0] if index == len(self) - 1 else Call.split(args, kwargs)[0]
                return _with_extras(hidden, self._extras[index])

            return skip

        def logits(states: Tensor, ids: Tensor) -> Tensor:
            last[:] = [states]
            result: Tensor = self.model(input_ids=ids, use_cache=False).logits
            return result

        with self._wrapped(passer):
            yield logits

    def learn_extras(self, ids: Tensor) -> None:
        """Record from a forward on `ids` [1, T] what blocks return beside the state, for replays to return as well."""
        self._own_states(ids)

    def check(self, ids: Tensor) -> None:
        """Compare a replay of the blocks on `ids` [2, T] with the model's own forward; ModelRefused if they differ."""
        own = self._own_states(ids[:1])
        states, _ = self.capture(ids[:1])
        _, calls = self.capture(ids[1:])  # from other tokens, to catch calls that depend on the tokens
        for index, expected in enumerate(own):
            with self.loaded(index), refusing(f"{self.path}.{index} cannot be run alone"):
                states = self.run(index, states, calls[index])
            if not expected.isfinite().all():
                raise ModelRefused(
                    f"the states after {self.path}.{index} are not finite, so the model cannot be pruned"
                )
            if not torch.equal(states, expected):
                raise ModelRefused(
                    f"{self.path}.{index} run alone differs from the model's own forward, so the model cannot be pruned"
                )

    def _own_states(self, ids: Tensor) -> list[Tensor]:
        """The states after each block in the model's own forward, one block in memory at a time."""
        states: list[Tensor] = []
        order: list[int] = []

        def loader(index: int, original: Callable[..., Any]) -> Callable[..., Any]:
            def run(*args: Any, **kwargs: Any) -> Any:
                with self.loaded(index):
                    output = original(*args, **kwargs)
                self._extras[index] = output[1:] if isinstance(output, tuple) else None
                states.append(_state(output).clone())
                order.append(index)
                return output

            return run

        with refusing("the model's own forward fails"):
            self._forward(ids, loader)
        if order != list(range(len(self))):
            raise ModelRefused(
                f"the model does not call the blocks in {self.path} once each in order: it cannot be pruned"
            )
        return states

    def _forward(self, ids: Tensor, wrap: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> None:
        """Run the model's own forward with each block's `forward` replaced by `wrap(index, forward)`."""
        with self._wrapped(wrap), torch.no_grad():
            self.model(input_ids=ids, use_cache=False)

    @contextmanager
    def _wrapped(self, wrap: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
        """Context manager: each block's `forward` wrapped, and the weights outside the blocks in memory."""
        for index, block in enumerate(self._stack):
            block.forward = wrap(index, block.forward)
        try:
            with self._placed(name for name in self._names if not name.startswith(f"{self.path}.")):
                yield
        finally:
            for block in self._stack:
                del block.forward  # the instance's wrapper; the class's own method shows again

    @contextmanager
    def _placed(self, names: Iterable[str]) -> Iterator[None]:
        """Context manager: the tensors `names` in memory, tied ones shared; afterwards they are meta tensors again."""
        before = {name: _tensor_at(self.model, name) for name in names}
        loaded: dict[str, Tensor] = {}
        for name in before:
            origin = self._names[name]
            if origin not in loaded:
                tensor = self._source.tensor(origin)
                kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
                loaded[origin] = tensor.to(kind, copy=True)  # a copy, as blocks are written to
            _place(self.model, name, loaded[origin])
        loaded.clear()
        try:
            yield
        finally:
            for name, tensor in before.items():
                _place(self.model, name, tensor)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path and modules of the outermost `nn.ModuleList` with the most weights; ModelRefused if there is none."""
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    outermost = {n: m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)}
    if not outermost:
        raise ModelRefused(f"{type(model).__name__} holds no list of blocks, so it cannot be pruned block by block")
    return max(outermost.items(), key=lambda item: sum(p.numel() for p in item[1].parameters()))


def prunable_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """As `find_blocks`; raises ModelRefused where too many weights of a block are outside linear layers."""
    path, stack = find_blocks(model)
    for index, block in enumerate(stack):
        _refuse_other_weights(block, f"{path}.{index}")
    return path, stack


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is torch's linear layer, or `Conv1D`, the transposed one of the GPT-2 family."""
    return isinstance(module, nn.Linear) or (type(module).__name__ == "Conv1D" and hasattr(module, "nf"))


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear layer as a view [outputs, inputs]; writing to it changes the layer."""
    weight = module.get_parameter("weight").data
    return weight if isinstance(module, nn.Linear) else weight.T


class _Captured(BaseException):
    """Ends a forward at the last block; a BaseException, so that no model code catches it."""


def _state(output: Any) -> Tensor:
    """The hidden state in a block's output."""
    state = output[0] if isinstance(output, tuple) else output
    if not isinstance(state, Tensor):
        raise ModelRefused(f"its blocks return {type(state).__name__} where a hidden state was expected")
    return state


def _with_extras(state: Tensor, extras: tuple[Any, ...] | None) -> Any:
    """`state` as the block would return it."""
    return state if extras is None else (state, *extras)


def _source_names(model: nn.Module, source: WeightSource) -> dict[str, str]:
    """The name in `source` of each tensor of `model`; tied tensors share one. ModelRefused where any is missing."""
    first: dict[int, str] = {}
    names = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        names[name] = first.setdefault(id(tensor), name)
    known = set(source.names())
    names |= {name: name for name in model.state_dict() if name not in names and name in known}  # stored buffers
    missing = sorted(set(names.values()) - known)
    if missing:
        raise ModelRefused(f"the checkpoint lacks {len(missing)} of the model's weights, {missing[0]} for instance")
    return names


def _refuse_other_weights(block: nn.Module, path: str) -> None:
    """Raise ModelRefused where less than LINEAR_SHARE of the weights of `block` are in linear layers."""
    linear = sum(module.get_parameter("weight").numel() for module in block.modules() if is_linear(module))
    total = sum(parameter.numel() for parameter in block.parameters())
    if linear < LINEAR_SHARE * total:
        inside = {f"{name}.weight" for name, module in block.named_modules() if is_linear(module)}
        largest = max((p.numel(), name) for name, p in block.named_parameters() if name not in inside)[1]
        raise ModelRefused(
            f"only {linear / max(total, 1):.0%} of the weights of {path} are in linear layers (not {largest}), "
            "as in mixtures with fused experts: it cannot be pruned yet"
        )


def _tensor_at(model: nn.Module, name: str) -> Tensor:
    """The parameter or buffer of `model` under its full name."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    tensor = module._parameters.get(leaf)
    return tensor if tensor is not None else module.get_buffer(leaf)


def _place(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Replace the parameter or buffer `name` by `tensor`."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
        return
    parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    module._parameters[leaf] = parameter
