"""Renders a model's chat template in Jinja's immutable sandbox, with bounds on loops, products and output.

The template comes with the model and is not trusted to behave: whatever it does ends in text or in one sentence."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from server.errors import ArtifactError, InvalidRequest

MAX_STEPS = 100_000  # over all `range` loops of one rendering
MAX_EXTRA = 100_000  # characters a template may add to what it was given


class Refused(jinja2.TemplateError):
    """The template called raise_exception: the conversation is not of the form it wants."""


class Generation(Extension):
    """Accepts `{% generation %}`, which only training looks at."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements within, as if the tag were not there."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class PlainNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore."""

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace may not hold {name!r}")
        super().__setitem__(name, value)


class Sandbox(ImmutableSandboxedEnvironment):
    """The sandbox, in which nothing can be repeated or raised to a power to fill the memory."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Multiply two numbers; SecurityError for anything else."""
        if operator == "**" or not all(isinstance(side, int | float) for side in (left, right)):
            raise SecurityError(f"`{operator}` works on small numbers only")
        return left * right


class ChatTemplate:
    """A compiled template; ArtifactError if it is not Jinja, or fails in any way but to refuse the conversation."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = Sandbox(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"])
        environment.filters["tojson"] = _tojson
        environment.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "namespace": PlainNamespace,
        }
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ArtifactError(f"The chat template is not valid: {error}") from None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a conversation, up to where the assistant speaks; InvalidRequest if the template refuses it."""
        limit = MAX_EXTRA + 2 * sum(len(value) for message in messages for value in message.values())
        pieces = []
        try:
            for piece in self._template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=True,
                range=Steps(MAX_STEPS),
                **self._special_tokens,
            ):
                pieces.append(piece)
                limit -= len(piece)
                if limit < 0:
                    raise SecurityError("it writes far more than it was given")
        except Refused as error:
            raise InvalidRequest(f"The model's chat template refuses the messages: {error}", param="messages") from None
        except Exception as error:  # a template can raise anything at all
            raise ArtifactError(f"The chat template failed: {type(error).__name__}: {error}") from None
        return "".join(pieces)


class Steps:
    """The template's `range`, with one budget for all loops, so that nesting them does not multiply it."""

    def __init__(self, budget: int) -> None:
        self._budget = budget

    def __call__(self, *limits: int) -> range:
        """A range, paid for from the budget; SecurityError when it is spent."""
        steps = range(*limits)
        # A range too long for len() raises OverflowError, which ends the rendering as well.
        self._budget -= 1 + len(steps)
        if self._budget < 0:
            raise SecurityError("its loops are too long")
        return steps


def _refuse(message: str) -> None:
    raise Refused(message)


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Plain JSON: Jinja's own filter would escape HTML, and models were trained without that."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)
