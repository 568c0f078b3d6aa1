"""A base model where its publisher's files lie, and the chat template that it is given in place of its own."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from pruning.errors import ModelRefused
from pruning.model.settings import json_text
from server.errors import ArtifactError, InvalidRequest
from server.text.chat_template import GREETING, ChatTemplate
from server.text.tokenizer_files import SETTINGS, TEMPLATE, read_template, special_tokens

REMEDY = (
    "give one, a Jinja file: `chat_template` in the recipe, `secateur import BASE --chat-template FILE`, or "
    "`chat_template` in server.toml for a model that was made already"
)
"""What to do for a model without a chat template."""


class Source(NamedTuple):
    """What an import reads."""

    path: Path
    """A Hugging Face directory, or a GGUF file."""
    digest: str
    """SHA-256 of its files, the given template among them."""
    template: Path | None = None
    """A Jinja file used in place of its own chat template."""


def replaced_template(given: Source, settings: Mapping[str, Any]) -> dict[str, str]:
    """The files that carry the given template, by name, and none without one; `settings` is the base's own file.

    The base's template is taken out of them, so that no reader finds two. Raises ArtifactError for a template that
    cannot be read, ModelRefused for one that is not valid or does not render a question.
    """
    if given.template is None:
        return {}
    source = read_template(given.template)
    refuse_template(source, special_tokens(settings), str(given.template))
    rest = {name: value for name, value in settings.items() if name != "chat_template"}
    return {TEMPLATE: source, SETTINGS: json_text(rest)}


def refuse_template(source: str, tokens: Mapping[str, str], place: str) -> None:
    """Raise ModelRefused, naming `place`, unless the chat template `source` is valid and renders a question."""
    try:
        text = ChatTemplate(source, tokens).render(GREETING)
    except (ArtifactError, InvalidRequest) as error:
        raise ModelRefused(f"{place} cannot be used as a chat template: {error}") from None
    if GREETING[0]["content"] not in text:
        raise ModelRefused(f"{place} is no chat template: it does not write the messages into the prompt")


def noted(note: str, given: Source) -> str:
    """The lineage's note on a base, with the name of the given template."""
    return "; ".join(filter(None, [note, f"chat template of {given.template.name}" if given.template else ""]))
