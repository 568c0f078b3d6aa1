"""What chat templates use beyond plain Jinja, for whoever renders one: a server's prompts, or a calibration's chats."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser


class Refused(jinja2.TemplateError):
    """The template called raise_exception: the conversation is not of the form it wants."""


class Generation(Extension):
    """Accepts `{% generation %}`, which only training looks at."""

    tags = {"generation"}  # noqa: RUF012  (jinja2 declares it so)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements within, as if the tag were not there."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def extend(environment: jinja2.Environment) -> None:
    """Give `environment` the tags and functions that templates expect."""
    for extension in (Generation, "jinja2.ext.loopcontrols"):
        environment.add_extension(extension)
    environment.globals |= {
        "raise_exception": _refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
    }


def special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The special tokens that tokenizer_config.json names, as templates call them."""
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    contents = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: content for name, content in contents.items() if isinstance(content, str)}


def _refuse(message: str) -> None:
    raise Refused(message)
