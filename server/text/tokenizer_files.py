"""Reads the tokenizer files that Hugging Face writes beside a model, without torch or transformers.

The one reader for serving, calibration, evaluation and export, so that all see the same template and stop ids.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import tokenizers

from server.errors import ArtifactError

TOKENIZER = "tokenizer.json"
SETTINGS = "tokenizer_config.json"
TEMPLATE = "chat_template.jinja"
GENERATION = "generation_config.json"
NAMES = (TOKENIZER, SETTINGS, TEMPLATE, GENERATION)
"""Every file read here, in the order in which an import copies them."""


class TokenizerFiles(msgspec.Struct, frozen=True):
    """The contents of a model's tokenizer files; all but tokenizer.json are optional."""

    definition: bytes
    """tokenizer.json as stored."""
    library: tokenizers.Tokenizer
    """The tokenizer itself; it recognises special tokens in text. Shared: do not change its options."""
    special_ids: dict[str, int]
    """The id of each special token, by its text."""
    special_tokens: dict[str, str]
    """The text of each special token that tokenizer_config.json names, by that name: `bos_token`, `eos_token`, ..."""
    stop_ids: frozenset[int]
    """Ids that end a reply: `eos_token_id` of generation_config.json and config.json, and the named `eos_token`."""
    chat_template: str | None
    """Jinja source of the default chat template; None for a model without one."""
    given: bool = False
    """Whether the template was given by the settings, for a model without one."""


def read(folder: Path) -> TokenizerFiles:
    """The tokenizer files in `folder`; ArtifactError names the file that is missing or damaged."""
    path = folder / TOKENIZER
    definition = _content(path)
    try:
        library = tokenizers.Tokenizer.from_buffer(definition)
    except Exception as error:  # the library raises plain Exception
        raise ArtifactError(f"{path} is not a tokenizer: {error}") from None
    settings = _settings(folder / SETTINGS)
    named = special_tokens(settings)
    special_ids = {token.content: id for id, token in library.get_added_tokens_decoder().items() if token.special}
    return TokenizerFiles(
        definition=definition,
        library=library,
        special_ids=special_ids,
        special_tokens=named,
        stop_ids=_stop_ids(folder, special_ids.get(named.get("eos_token", ""))),
        chat_template=_chat_template(folder, settings),
    )


def read_template(path: Path) -> str:
    """The Jinja source in the file `path`; raises ArtifactError where it cannot be read as UTF-8."""
    try:
        return _content(path).decode()
    except UnicodeDecodeError as error:
        raise ArtifactError(f"{path} is not UTF-8: {error}") from None


def special_tokens(settings: Mapping[str, Any]) -> dict[str, str]:
    """The text of each special token that a parsed tokenizer_config.json names, by that name."""
    named = {name: value for name, value in settings.items() if name.endswith("_token")}
    texts = {name: value.get("content") if isinstance(value, dict) else value for name, value in named.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def _chat_template(folder: Path, settings: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, else `chat_template` of the settings: one template, or several by name with a default."""
    file = folder / TEMPLATE
    if file.exists():
        return read_template(file)
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    return template if isinstance(template, str) and template else None


def _stop_ids(folder: Path, named: int | None) -> frozenset[int]:
    found: list[object] = [named]
    for name in (GENERATION, "config.json"):
        end = _settings(folder / name).get("eos_token_id")
        found += end if isinstance(end, list) else [end]
    return frozenset(id for id in found if isinstance(id, int))


def _settings(path: Path) -> dict[str, Any]:
    """The JSON object in `path`, or an empty one where there is no such file."""
    if not path.exists():
        return {}
    try:
        return msgspec.json.decode(_content(path), type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise ArtifactError(f"{path} cannot be read as a JSON object: {error}") from None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path} cannot be read: {error.strerror}.") from None
