"""Renders a model's chat template in Jinja's immutable sandbox, with limits on time, loops and output.

The template comes with the model and is not trusted: whatever it does, the result is text or one of our errors.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.utils import Namespace
from msgspec import Struct, field

from server.errors import ArtifactError, InvalidRequest
from server.text.budget import Budget, with_budget
from server.text.sandbox import Sandbox

Message = Mapping[str, Any]
"""One turn of a conversation: `role`, `content` and whatever else the template reads."""
Clock = Callable[[], datetime]
RESERVED = frozenset(
    {"messages", "tools", "add_generation_prompt", "continue_final_message", "documents", "tokenize", "range"}
)
"""Names that a caller's variables may not have."""
GREETING = ({"role": "user", "content": "Hello"},)
"""A conversation that every usable template renders."""


class TemplateOptions(Struct, frozen=True):
    """What a template reads beside the messages."""

    tools: tuple[Mapping[str, Any], ...] = ()
    """Functions that the model may call, as OpenAI's `tools`."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the template that a caller sets, such as `enable_thinking`."""
    continued: bool = False
    """Whether the reply continues the last message."""


class ChatTemplate:
    """A compiled chat template; raises ArtifactError where `source` is not valid Jinja.

    `special_tokens` are variables of the template, by name; `clock` is what its `strftime_now` reads.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str], clock: Clock = datetime.now) -> None:
        environment = Sandbox(trim_blocks=True, lstrip_blocks=True)
        for extension in (GenerationTag, "jinja2.ext.loopcontrols"):
            environment.add_extension(extension)
        environment.globals |= {
            "namespace": PlainNamespace,
            "dict": dict,
            "raise_exception": _refuse,
            "strftime_now": lambda form: clock().strftime(form),
        }
        self._special_tokens = dict(special_tokens)
        self._reserved = RESERVED | environment.globals.keys() | special_tokens.keys()
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ArtifactError(f"The chat template is not valid: {error}") from None

    def render(self, messages: Sequence[Message], *, reply: bool = True, options: TemplateOptions | None = None) -> str:
        """The conversation as text; with `reply`, up to where the assistant begins to speak.

        Raises InvalidRequest where the template refuses the messages, or for a variable that the server sets itself,
        ArtifactError where it fails.
        """
        options = options or TemplateOptions()
        self._check_variables(options.variables)
        budget = Budget(sum(map(len, strings([*messages, *options.tools, options.variables]))))
        given: dict[str, Any] = {
            **options.variables,
            **({"tools": list(options.tools)} if options.tools else {}),
            **self._special_tokens,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": reply,
            "range": budget.range,
        }
        pieces, size = [], 0
        try:
            for piece in self._template.generate(with_budget(given, budget)):
                pieces.append(piece)
                size += len(piece)
                budget.check_size(size)
        except Refused as error:
            raise InvalidRequest(f"The model's chat template refuses the messages: {error}", param="messages") from None
        except Exception as error:  # a template can raise anything
            raise ArtifactError(f"The chat template failed: {type(error).__name__}: {error}") from None
        return "".join(pieces)

    def _check_variables(self, variables: Mapping[str, Any]) -> None:
        for name in variables:
            if name in self._reserved or not name.isidentifier() or name.startswith("_"):
                param = f"chat_template_kwargs.{name[:64]}"
                raise InvalidRequest(f"`{param}` is set by the server, or no variable's name.", param=param)


class Refused(jinja2.TemplateError):
    """The template called `raise_exception`: it rejects this conversation."""


class GenerationTag(Extension):
    """Ignores `{% generation %}`, which marks for training what the assistant says."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside the tag."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class PlainNamespace(Namespace):
    """Jinja's `namespace`, without names that begin with an underscore and without a repr of its contents."""

    def __repr__(self) -> str:
        return "<namespace>"

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace may not hold {name!r}")
        super().__setitem__(name, value)


def strings(value: Any) -> Iterator[str]:
    """Every string in nested objects and lists, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from strings(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from strings(inner)


def with_strings(value: Any, change: Callable[[str], str]) -> Any:
    """A copy of `value` with `change` applied to each of its `strings`."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): with_strings(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [with_strings(inner, change) for inner in value]
    return value


def _refuse(message: str) -> None:
    raise Refused(message)
