"""Finds the blocks of a model and runs them one at a time, bit for bit as the model itself would, or refuses it.

Knows no architecture: the blocks are the outermost module list with the most weights, and the proof is a replay.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pruning.errors import ModelRefused, refusing
from pruning.model.weights import WeightSource

LINEAR_SHARE = 0.8
"""Less of a block's weights than this in linear layers means that most are elsewhere, in fused experts for instance."""


class Call(NamedTuple):
    """How the model called one block, all but the hidden state, which is the first argument."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def split(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, "Call"]:
        """The hidden state [B, T, hidden] and the rest of a call."""
        if args:
            return args[0], cls(args[1:], kwargs)
        return kwargs["hidden_states"], cls((), {k: v for k, v in kwargs.items() if k != "hidden_states"})


class Blocks:
    """The blocks of `model`, whose weights are on the meta device until they are loaded from `source`."""

    def __init__(self, model: nn.Module, source: WeightSource) -> None:
        self.model = model
        self.path, self._stack = prunable_blocks(model)
        self._source = source
        self._names = _source_names(model, source)
        self._extras: list[tuple[Any, ...] | None] = [None] * len(self._stack)  # what a block returns beside the state

    def __len__(self) -> int:
        return len(self._stack)

    def linears(self, index: int) -> dict[str, nn.Module]:
        """The linear layers of one block by the full names of their weights."""
        modules = self._stack[index].named_modules(prefix=f"{self.path}.{index}")
        return {f"{name}.weight": module for name, module in modules if is_linear(module)}

    @contextmanager
    def loaded(self, index: int) -> Iterator[nn.Module]:
        """One block with its weights in memory, float32, for as long as the context lasts."""
        prefix = f"{self.path}.{index}."
        with self._placed(name for name in self._names if name.startswith(prefix)):
            yield self._stack[index]

    def capture(self, ids: Tensor) -> tuple[Tensor, list[Call]]:
        """What the model hands to its blocks for `ids` [B, T]: the first hidden state and one call for each block."""
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
        """Run one loaded block on `states` [B, T, hidden]; returns the states after it, with their graph if asked."""
        with torch.set_grad_enabled(graph):
            return _state(self._stack[index](states, *call.args, **call.kwargs))

    @contextmanager
    def ending(self) -> Iterator[Callable[[Tensor, Tensor], Tensor]]:
        """What the model makes of `states` [B, T, hidden] after its last block, for `ids` [B, T]: logits [B, T, words].

        The weights outside the blocks are in memory for as long as the context lasts.
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

    def learn(self, ids: Tensor) -> None:
        """Find out on `ids` [1, T] what each block returns beside the state, which `capture` and `ending` hand on."""
        self._own_states(ids)

    def check(self, ids: Tensor) -> None:
        """Prove on `ids` [2, T] that replaying the blocks equals the model's own forward, or raise ModelRefused."""
        own = self._own_states(ids[:1])
        states, _ = self.capture(ids[:1])
        _, calls = self.capture(ids[1:])  # of other tokens: a call that depends on the tokens must not pass
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
        """The states after each block in the model's own forward, with one block in memory at a time."""
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
        """Run the model's own forward with the `forward` of each block wrapped."""
        with self._wrapped(wrap), torch.no_grad():
            self.model(input_ids=ids, use_cache=False)

    @contextmanager
    def _wrapped(self, wrap: Callable[[int, Callable[..., Any]], Callable[..., Any]]) -> Iterator[None]:
        """Wrap the `forward` of each block, and have all weights but theirs in memory."""
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
        """Put tensors in memory under `names`, tied ones once, and put the meta tensors back afterwards."""
        before = {name: _tensor_at(self.model, name) for name in names}
        loaded: dict[str, Tensor] = {}
        for name in before:
            origin = self._names[name]
            if origin not in loaded:
                tensor = self._source.tensor(origin)
                kind = torch.float32 if tensor.is_floating_point() else tensor.dtype
                loaded[origin] = tensor.to(kind, copy=True)  # never the source's own memory
            _place(self.model, name, loaded[origin])
        loaded.clear()
        try:
            yield
        finally:
            for name, tensor in before.items():
                _place(self.model, name, tensor)


def find_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """The path and the modules of the outermost module list with the most weights; raises ModelRefused without one."""
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    outermost = {n: m for n, m in lists.items() if not any(n.startswith(f"{other}.") for other in lists)}
    if not outermost:
        raise ModelRefused(f"{type(model).__name__} holds no list of blocks, so it cannot be pruned block by block")
    return max(outermost.items(), key=lambda item: sum(p.numel() for p in item[1].parameters()))


def prunable_blocks(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """What `find_blocks` finds; raises ModelRefused where most weights of a block are outside linear layers."""
    path, stack = find_blocks(model)
    for index, block in enumerate(stack):
        _refuse_other_weights(block, f"{path}.{index}")
    return path, stack


def is_linear(module: nn.Module) -> bool:
    """Whether `module` is a linear layer: torch's, or the transposed one of GPT-2's family, known by its name."""
    return isinstance(module, nn.Linear) or (type(module).__name__ == "Conv1D" and hasattr(module, "nf"))


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a linear layer as a view [outputs, inputs]; writing to it changes the layer."""
    weight = module.get_parameter("weight").data
    return weight if isinstance(module, nn.Linear) else weight.T


class _Captured(BaseException):
    """Ends a forward once the last block has been called; no model catches it as an error of its own."""


def _state(output: Any) -> Tensor:
    """The hidden state in what a block returned."""
    state = output[0] if isinstance(output, tuple) else output
    if not isinstance(state, Tensor):
        raise ModelRefused(f"its blocks return {type(state).__name__} where a hidden state was expected")
    return state


def _with_extras(state: Tensor, extras: tuple[Any, ...] | None) -> Any:
    """`state` in the form in which the block would have returned it."""
    return state if extras is None else (state, *extras)


def _source_names(model: nn.Module, source: WeightSource) -> dict[str, str]:
    """Each tensor of `model` and the name that `source` has it under; tied ones share one."""
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
    """Raise ModelRefused where most weights of `block` are outside linear layers."""
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
    """Put `tensor` in place of the parameter or buffer `name`."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor
        return
    parameter = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
    module._parameters[leaf] = parameter
