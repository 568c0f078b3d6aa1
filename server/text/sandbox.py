"""A sandbox in which a template can neither run for long nor fill the memory, whatever it loops over or multiplies.

Every loop, call, filter, test and comparison pays from one budget of steps and seconds, and whatever is made (texts
that are written, lists that hold lists) is measured in full before it is used. Filters and names are those listed.
"""

from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from server.text.budget import budget_of
from server.text.filters import filters, joined, replaced, tests

MAX_SOURCE = 1 << 18  # characters of a template; the longest known have a tenth of it
WIDENING = frozenset({"center", "ljust", "rjust", "zfill", "expandtabs", "encode", "format", "format_map", "translate"})


class Sandbox(ImmutableSandboxedEnvironment):
    """Renders with a Budget under the name BUDGET; without one, everything that pays fails."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals.clear()
        self.filters, self.tests = filters(self.filters), tests(self.tests)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Jinja's hook before the parser, which takes its time for long texts."""
        if len(source) > MAX_SOURCE:
            raise TemplateSyntaxError(f"it has more than {MAX_SOURCE} characters", 1)
        return super()._parse(source, name, filename)

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        """Jinja's hook between parsing and compiling: here everything learns to pay."""
        bounded: nodes.Template = _Bounding().visit(source)
        return super()._generate(bounded, *arguments, **options)

    def step(self, context: Any) -> str:
        """One turn; the empty text, since it stands where output does."""
        budget_of(context).step()
        return ""

    def wrote(self, context: Any, size: int) -> str:
        """Text of the template itself, of so many characters; the empty text likewise."""
        budget_of(context).makes(size)
        return ""

    def written(self, context: Any, value: Any) -> str:
        """A value as the text that is written."""
        text = value if isinstance(value, str) else str(value)
        budget_of(context).makes(len(text))
        return text

    def made(self, context: Any, value: Any) -> Any:
        """A list, tuple, dict, slice or comparison, measured."""
        return budget_of(context).made(value)

    def concat_texts(self, context: Any, *values: Any) -> str:
        """What `~` makes."""
        texts = [str(value) for value in values]
        budget_of(context).makes(sum(map(len, texts)))
        return "".join(texts)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  (as Jinja has it)
        """Call what is safe; methods of texts that widen them are not, nor any method of numbers and bytes."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if owner is __self:
            return __obj(*args)
        if isinstance(owner, int | float | bytes) or (isinstance(owner, str) and name in WIDENING):
            raise SecurityError(f"{name!r} is not for templates")
        if isinstance(owner, str) and name == "replace":
            replaced(__context, owner, *args)
        elif isinstance(owner, str) and name == "join" and args:
            args = (joined(__context, owner, args[0]),)
        return budget_of(__context).made(super().call(__context, __obj, *args, **kwargs))

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
                budget_of(context).fits(len(left) + len(right))
            return budget_of(context).made(left + right)
        if not numbers or operator == "**":
            raise SecurityError(f"`{operator}` works on small numbers only")
        if operator == "*" and max(abs(left), abs(right)) > 10**18:
            raise SecurityError(f"`{operator}` works on small numbers only")
        return super().call_binop(context, operator, left, right)


class _Bounding(NodeTransformer):
    """Puts a payment at the head of each loop and macro, and around whatever makes or compares values."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  (Jinja's names)
        return self._paid(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._paid(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._paid(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _method("concat_texts", node.nodes).set_lineno(node.lineno)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        plain = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        paid = [child if isinstance(child, nodes.TemplateData) else _method("written", [child]) for child in node.nodes]
        node.nodes = [*([_method("wrote", [nodes.Const(plain)])] if plain else []), *paid]
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return self._made(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return self._made(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        return self._made(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self._made(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        if node.ctx == "load" and isinstance(node.arg, nodes.Slice):
            return self._made(node)
        self.generic_visit(node)
        return node

    def _made(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _method("made", [node]).set_lineno(node.lineno)

    def _paid(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_method("step", [])]).set_lineno(node.lineno))
        loop: nodes.Node = node
        return loop


def _method(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    """A call of the sandbox itself, which no template can shadow."""
    return nodes.Call(nodes.EnvironmentAttribute(name), [nodes.ContextReference(), *arguments], [], None, None)
