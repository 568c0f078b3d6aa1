"""A sandbox in which a template can neither run for long nor fill the memory, whatever it loops over or multiplies.

Every loop and macro pays for each turn from one budget of steps and seconds, and every operation whose result may be
far larger than what it was given is measured first. Filters and names are those that are listed.
"""

import json
import time
from collections.abc import Mapping
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 300_000  # over all loops of one rendering
MAX_SECONDS = 2.0
MAX_EXTRA = 100_000  # characters a template may add to what it was given
BUDGET = "\0budget"  # no template can write this name
FILTERS = frozenset(
    {
        *("abs", "attr", "bool", "capitalize", "count", "d", "default", "dictsort", "e", "escape", "first", "float"),
        *("forceescape", "groupby", "int", "items", "join", "last", "length", "list", "lower", "map", "max", "min"),
        *("reject", "rejectattr", "replace", "reverse", "round", "safe", "select", "selectattr", "sort", "string"),
        *("sum", "title", "tojson", "trim", "unique", "upper"),
    }
)
TESTS_OF_NAMES = frozenset({"filter", "test"})  # would tell what this sandbox has
WIDENING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "format", "format_map", "translate"})


class Budget:
    """What one rendering may still spend; `characters` is the longest text that it may make."""

    def __init__(self, given: int = 0) -> None:
        self.characters = MAX_EXTRA + 2 * given
        self._steps = MAX_STEPS
        self._deadline = time.monotonic() + MAX_SECONDS

    def step(self, count: int = 1) -> None:
        """Pay for so many turns of a loop; SecurityError when the budget or the time is spent."""
        self._steps -= count
        if self._steps < 0:
            raise SecurityError("its loops are too long")
        if time.monotonic() > self._deadline:
            raise SecurityError("it takes too long")

    def range(self, *limits: int) -> "range":
        """The template's `range`; one too long for len() raises OverflowError, which ends the rendering as well."""
        steps = range(*limits)
        self.step(1 + len(steps))
        return steps

    def fits(self, size: int) -> None:
        """SecurityError for a text or list of more than may be made."""
        if size > self.characters:
            raise SecurityError("it writes far more than it was given")


class Sandbox(ImmutableSandboxedEnvironment):
    """Renders with a Budget under the name BUDGET; without one, every loop fails."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals.clear()
        self.filters = {name: self.filters[name] for name in self.filters if name in FILTERS}
        self.filters |= {"tojson": _tojson}
        self.tests = {name: test for name, test in self.tests.items() if name not in TESTS_OF_NAMES}

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        """Jinja's hook between parsing and compiling: here every loop learns to pay."""
        bounded: nodes.Template = _Bounding().visit(source)
        return super()._generate(bounded, *arguments, **options)

    def step(self, context: Any) -> str:
        """One turn; the empty text, since it stands where output does."""
        _budget(context).step()
        return ""

    def concat_texts(self, context: Any, *values: Any) -> str:
        """What `~` makes."""
        texts = [str(value) for value in values]
        _budget(context).fits(sum(map(len, texts)))
        return "".join(texts)

    def filtered(self, context: Any, name: str, value: Any, *arguments: Any) -> Any:
        """What the filters `join` and `replace` are given, once it is known that the result fits."""
        if name == "join":
            return _joined(context, str(arguments[0]) if arguments else "", value)
        _replaced(context, str(value), *arguments)
        return value

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  (as Jinja has it)
        """Call what is safe; methods of texts that widen them are not."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            if name in WIDENING:
                raise SecurityError(f"{name!r} is not for templates")
            if name == "replace":
                _replaced(__context, owner, *args)
            elif name == "join" and args:
                args = (_joined(__context, owner, args[0]),)
        return super().call(__context, __obj, *args, **kwargs)

    def wrap_str_format(self, value: Any) -> Any:
        """`format` and `format_map` of a text widen it too; Jinja hands them out by this."""
        if getattr(value, "__name__", "") in WIDENING and isinstance(getattr(value, "__self__", None), str):
            raise SecurityError(f"{value.__name__!r} is not for templates")
        return None

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Numbers as ever but for powers; `+` of texts and lists within the budget; SecurityError for anything else."""
        numbers = all(isinstance(side, int | float) for side in (left, right))
        if operator == "+" and not numbers:
            if all(hasattr(side, "__len__") for side in (left, right)):
                _budget(context).fits(len(left) + len(right))
            return left + right
        if not numbers or operator == "**":
            raise SecurityError(f"`{operator}` works on small numbers only")
        if operator == "*" and max(abs(left), abs(right)) > 10**18:
            raise SecurityError(f"`{operator}` works on small numbers only")
        return super().call_binop(context, operator, left, right)


class _Bounding(NodeTransformer):
    """Puts a payment at the head of each loop and macro, and a measure before each text that is put together."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  (Jinja's names)
        return self._paid(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._paid(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._paid(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _method("concat_texts", node.nodes).set_lineno(node.lineno)

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.node is not None and node.name in ("join", "replace"):
            node.node = _method("filtered", [nodes.Const(node.name), node.node, *node.args])
        return node

    def _paid(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_method("step", [])]).set_lineno(node.lineno))
        loop: nodes.Node = node
        return loop


def _method(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    """A call of the sandbox itself, which no template can shadow."""
    return nodes.Call(nodes.EnvironmentAttribute(name), [nodes.ContextReference(), *arguments], [], None, None)


def _budget(context: Any) -> Budget:
    found = context.parent.get(BUDGET)
    if not isinstance(found, Budget):
        raise SecurityError("there is no budget for loops")
    return found


def _joined(context: Any, joint: str, items: Any) -> list[Any]:
    """The items, once it is known that they fit when they are joined."""
    found = list(items)
    _budget(context).fits(sum(len(str(item)) for item in found) + len(joint) * len(found))
    return found


def _replaced(context: Any, text: str, old: Any = "", new: Any = "", *_: Any) -> None:
    """Measure what a replacement makes."""
    times = text.count(str(old)) if old else len(text) + 1
    _budget(context).fits(len(text) + times * len(str(new)))


def variables(budget: Budget, values: Mapping[str, Any]) -> dict[str, Any]:
    """What a template is rendered with."""
    return {**values, BUDGET: budget}


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Plain JSON: Jinja's own filter would escape HTML, and models were trained without that."""
    if indent is not None and not 0 <= indent <= 16:
        raise SecurityError("`tojson` indents by 16 at most")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
