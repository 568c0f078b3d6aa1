"""Renders a model's chat template in Jinja's immutable sandbox, with bounds on time, loops and output.

The template comes with the model and is not trusted to behave: whatever it does ends in text or in one sentence."""

from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.exceptions import SecurityError
from jinja2.utils import Namespace

from server.errors import ArtifactError, InvalidRequest
from server.text.extensions import Refused, extend
from server.text.sandbox import Budget, Sandbox, variables


class PlainNamespace(Namespace):
    """Jinja's namespace without names that begin with an underscore, and without a text that tells what it holds."""

    def __repr__(self) -> str:
        return "<namespace>"

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a namespace may not hold {name!r}")
        super().__setitem__(name, value)


class ChatTemplate:
    """A compiled template; ArtifactError if it is not Jinja, or fails in any way but to refuse the conversation."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = Sandbox(trim_blocks=True, lstrip_blocks=True)
        extend(environment)
        environment.globals |= {"namespace": PlainNamespace, "dict": dict}
        self._special_tokens = dict(special_tokens)
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise ArtifactError(f"The chat template is not valid: {error}") from None

    def render(self, messages: Sequence[Mapping[str, str]]) -> str:
        """The text of a conversation, up to where the assistant speaks; InvalidRequest if the template refuses it."""
        budget = Budget(sum(len(value) for message in messages for value in message.values()))
        given: dict[str, Any] = {
            **self._special_tokens,
            "messages": [dict(message) for message in messages],
            "add_generation_prompt": True,
            "range": budget.range,
        }
        pieces, size = [], 0
        try:
            for piece in self._template.generate(variables(budget, given)):
                pieces.append(piece)
                size += len(piece)
                budget.fits(size)
        except Refused as error:
            raise InvalidRequest(f"The model's chat template refuses the messages: {error}", param="messages") from None
        except Exception as error:  # a template can raise anything at all
            raise ArtifactError(f"The chat template failed: {type(error).__name__}: {error}") from None
        return "".join(pieces)
