"""A Jinja sandbox that also bounds the time and memory of a template.

Every loop, call, filter, test and comparison is charged to one `Budget`, and every text and list it produces is
measured before it is used. Jinja's own sandbox only guards attributes.
"""

from typing import Any

from jinja2 import TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from server.text.budget import budget_of
from server.text.filters import bounded_filters, bounded_tests, check_replacement, joinable

MAX_SOURCE = 1 << 18  # characters of a template; ten times the longest known
UNBOUNDED = frozenset(
    {"center", "ljust", "rjust", "zfill", "expandtabs", "encode", "format", "format_map", "translate"}
)
"""Methods of texts whose result can be longer than any limit."""


class Sandbox(ImmutableSandboxedEnvironment):
    """Renders templates whose variables come from `with_budget`; without a budget, rendering fails."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.globals.clear()
        self.filters, self.tests = bounded_filters(self.filters), bounded_tests(self.tests)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Jinja's hook before parsing, which is slow for long templates."""
        if len(source) > MAX_SOURCE:
            raise TemplateSyntaxError(f"it has more than {MAX_SOURCE} characters", 1)
        return super()._parse(source, name, filename)

    def _generate(self, source: nodes.Template, *arguments: Any, **options: Any) -> str:
        """Jinja's hook between parsing and compiling: inserts the charges."""
        bounded: nodes.Template = _Charging().visit(source)
        return super()._generate(bounded, *arguments, **options)

    def step(self, context: Any) -> str:
        """Charge one loop step; returns an empty text, since it is compiled as output."""
        budget_of(context).charge_steps()
        return ""

    def charge_literal(self, context: Any, size: int) -> str:
        """Charge `size` characters of the template's own text; returns an empty text, as `step`."""
        budget_of(context).charge_characters(size)
        return ""

    def as_text(self, context: Any, value: Any) -> str:
        """`value` as text for the output, charged."""
        text = value if isinstance(value, str) else str(value)
        budget_of(context).charge_characters(len(text))
        return text

    def charged(self, context: Any, value: Any) -> Any:
        """`value`, a list, tuple, dict, slice or comparison, charged."""
        return budget_of(context).charged(value)

    def concat_texts(self, context: Any, *values: Any) -> str:
        """The result of `~`, charged."""
        texts = [str(value) for value in values]
        budget_of(context).charge_characters(sum(map(len, texts)))
        return "".join(texts)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805  (as Jinja has it)
        """Call `__obj`, charged; SecurityError for methods of numbers and bytes, and for texts' unbounded ones."""
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if owner is __self:
            return __obj(*args)
        if isinstance(owner, int | float | bytes) or (isinstance(owner, str) and name in UNBOUNDED):
            raise SecurityError(f"{name!r} is not for templates")
        if isinstance(owner, str) and name == "replace":
            check_replacement(__context, owner, *args)
        elif isinstance(owner, str) and name == "join" and args:
            args = (joinable(__context, owner, args[0]),)
        return budget_of(__context).charged(super().call(__context, __obj, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Any:
        """Jinja's hook for `format` and `format_map` of a text, which can widen it without bound."""
        if getattr(value, "__name__", "") in UNBOUNDED and isinstance(getattr(value, "__self__", None), str):
            raise SecurityError(f"{value.__name__!r} is not for templates")
        return None

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Arithmetic on small numbers, but no powers, and charged `+` of texts and lists; else SecurityError."""
        numbers = all(isinstance(side, int | float) for side in (left, right))
        if operator == "+" and not numbers:
            if all(hasattr(side, "__len__") for side in (left, right)):
                budget_of(context).check_size(len(left) + len(right))
            return budget_of(context).charged(left + right)
        if not numbers or operator == "**":
            raise SecurityError(f"`{operator}` works on small numbers only")
        if operator == "*" and max(abs(left), abs(right)) > 10**18:
            raise SecurityError(f"`{operator}` works on small numbers only")
        return super().call_binop(context, operator, left, right)


class _Charging(NodeTransformer):
    """Inserts a charge at the head of each loop and macro, and around each node that produces or compares values."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802  (Jinja's names)
        return self._charged_body(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._charged_body(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._charged_body(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _method("concat_texts", node.nodes).set_lineno(node.lineno)

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        plain = sum(len(child.data) for child in node.nodes if isinstance(child, nodes.TemplateData))
        paid = [child if isinstance(child, nodes.TemplateData) else _method("as_text", [child]) for child in node.nodes]
        node.nodes = [*([_method("charge_literal", [nodes.Const(plain)])] if plain else []), *paid]
        return node

    def visit_List(self, node: nodes.List) -> nodes.Node:  # noqa: N802
        return self._charged(node)

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:  # noqa: N802
        return self._charged(node)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        return self._charged(node)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:  # noqa: N802
        return self._charged(node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        if node.ctx == "load" and isinstance(node.arg, nodes.Slice):
            return self._charged(node)
        self.generic_visit(node)
        return node

    def _charged(self, node: nodes.Expr) -> nodes.Node:
        self.generic_visit(node)
        return _method("charged", [node]).set_lineno(node.lineno)

    def _charged_body(self, node: Any) -> nodes.Node:
        self.generic_visit(node)
        node.body.insert(0, nodes.Output([_method("step", [])]).set_lineno(node.lineno))
        loop: nodes.Node = node
        return loop


def _method(name: str, arguments: list[nodes.Expr]) -> nodes.Call:
    """A call of the sandbox's own method `name`, which no template can shadow."""
    return nodes.Call(nodes.EnvironmentAttribute(name), [nodes.ContextReference(), *arguments], [], None, None)
