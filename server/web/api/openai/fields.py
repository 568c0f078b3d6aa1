"""What becomes of a request's fields: read, dropped because they ask for nothing, ignored, unsupported or unknown.

A field that would change the reply and cannot be honoured is refused by name. Notes, and fields that only ask for a
style, are ignored; `X-Secateur-Ignored` of the response lists those.
"""

import json
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from server.engine.sequence import SamplingOptions
from server.errors import InvalidRequest
from server.skills.skill import Skill

UNSUPPORTED: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (False, True),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
    "web_search_options": (),
    "suffix": ("",),
    "echo": (False,),
    "use_beam_search": (False,),
    "length_penalty": (1,),
    "early_stopping": (False,),
    "typical_p": (1,),
    "tfs_z": (1,),
    "top_a": (0,),
    "mirostat": (0,),
    "dry_multiplier": (0,),
    "xtc_probability": (0,),
    "bad_words": ([],),
    "logits_processors": ([],),
    "include_stop_str_in_output": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "add_special_tokens": (False,),
    "truncate_prompt_tokens": (),
    "return_tokens_as_token_ids": (False,),
    "chat_template": (),
    "documents": ([],),
    "mm_processor_kwargs": ({},),
}
"""Fields of OpenAI, vLLM and llama.cpp that an endpoint may not read, each with the values that change nothing."""
NOTES = frozenset(
    {"metadata", "safety_identifier", "prompt_cache_retention", "cache_prompt", "keep_alive", "priority", "request_id"}
)
"""The caller's own notes, and hints to a scheduler or cache: they change no reply, and are not stored or logged."""
IGNORED = frozenset({"reasoning_effort", "verbosity", "prediction", "service_tier", "store"})
"""Fields that ask for a style, a service tier or speed; no reply is wrong without them."""
NOTHING: tuple[Any, ...] = (None, False, [], {}, "", "none", "auto", "default")
"""Values that ask for nothing, whatever the field."""
SHOWN = 64  # characters of an unknown field's name


class SortedFields(NamedTuple):
    """The fields of a body: those to read, and the names of ignored and of unknown ones."""

    read: dict[str, Any]
    ignored: tuple[str, ...]
    unknown: tuple[str, ...]


class Tolerant(SamplingOptions, frozen=True, kw_only=True):
    """A request with the names of fields that were not read; these come from `sort_fields`, not from the body."""

    ignored: tuple[str, ...] = ()
    unknown: tuple[str, ...] = ()

    def ignored_for(self, skill: Skill) -> tuple[str, ...]:
        """The names of the fields that a reply of `skill` ignores; raises InvalidRequest if it refuses unknown ones."""
        if self.unknown and skill.unknown_fields == "refuse":
            name = self.unknown[0]
            near = get_close_matches(name, fields_of(type(self)), n=1)
            hint = f" Is it `{near[0]}`?" if near else ""
            raise InvalidRequest(f"Unknown field: `{name}`.{hint}", param=name, code="unknown_parameter")
        return (*self.ignored, *self.unknown)


def sort_fields(fields: Mapping[str, Any], known: Collection[str]) -> SortedFields:
    """The `fields` of a body for an endpoint that reads the `known` ones; raises InvalidRequest for an unsupported one.

    Fields that are null are as if left out.
    """
    read: dict[str, Any] = {}
    ignored: list[str] = []
    unknown: list[str] = []
    for name, value in fields.items():
        if value is None or name in NOTES:
            continue
        if name in known:
            read[name] = value
        elif name in UNSUPPORTED:
            check_unsupported(name, value)
        elif not asks_for_nothing(value):
            (ignored if name in IGNORED else unknown).append(name[:SHOWN])
    return SortedFields(read, tuple(ignored), tuple(unknown))


def asks_for_nothing(value: Any) -> bool:
    """Whether a value asks for nothing, whatever its field; a number might, but the field may be misspelt."""
    return value in NOTHING and (isinstance(value, bool) or not isinstance(value, int | float))


def check_unsupported(name: str, value: Any) -> None:
    """Raise InvalidRequest unless `value` changes nothing."""
    values = UNSUPPORTED[name]
    if value not in values:
        allowed = " or ".join(json.dumps(value) for value in values)
        hint = f" beyond {allowed}" if allowed else ""
        raise InvalidRequest(f"`{name}` is not supported{hint}.", param=name, code="unsupported_parameter")


def fields_of(kind: type[Tolerant]) -> frozenset[str]:
    """The names of the fields that a request of `kind` reads from its body."""
    return frozenset(kind.__struct_fields__) - {"ignored", "unknown"}
