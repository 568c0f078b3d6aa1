"""`[experiment]` and `[gate]` of a skill's file: how one prompt is compared with another."""

from typing import Annotated, Literal

from msgspec import Meta, Struct

Measure = Literal["overlap", "contained", "exact"]


class Experiment(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A rival file of the same skill, which answers a share of the visitors' conversations."""

    file: Annotated[str, Meta(min_length=1, max_length=300)]
    """The rival's TOML file, in a folder below this file's; its `name` and limits must be the same."""
    share: Annotated[float, Meta(gt=0, lt=1)] = 0.5
    """The share of conversations that the rival answers, between 0 and 1; a conversation stays with its answerer."""


class Gate(Struct, frozen=True, forbid_unknown_fields=True):
    """A task on which a revision must not be worse than the published one."""

    task: Annotated[str, Meta(pattern=r"^[\w.-]+$")]
    """The `name` of the task, as `secateur evaluate --skill` scored it."""
    measure: Measure = "overlap"
    """What is compared: `overlap` of words with the reference, `contained`, or `exact`."""
    max_drop: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """The most that the mean may fall, judged by the worse bound of a 95 % interval over the task's items."""
