"""The text of a revision: a skill's TOML file whose prompt is in the text itself."""

import difflib
from pathlib import Path

import msgspec

from server.errors import ConfigError
from server.skills import identity
from server.skills.skill import Skill, check
from server.storage.toml import FILE, decode

LONGEST = 400_000
"""Characters of a revision's text."""


def parse(text: str, folder: Path, name: str = "") -> Skill:
    """The skill that `text` describes; files of keys are relative to `folder` and inside it.

    Raises ConfigError with the field and what is allowed, also if the skill is not called `name`.
    """
    where = f"{name or 'the skill'}.toml"
    if len(text) > LONGEST:
        raise ConfigError(f"{where} has more than {LONGEST} characters")
    skill = decode(text.encode(), Skill, where)
    if name and skill.name != name:
        raise ConfigError(f"{where}: the name is {skill.name!r} at `$.name`; a skill keeps its name: make a new one")
    if skill.system_file:
        raise ConfigError(f"{where}: a revision holds its prompt itself: write `system` instead of `$.system_file`")
    if skill.experiment is not None:
        raise ConfigError(
            f"{where}: an experiment between revisions is no part of one: leave out `$.experiment`, and start it on "
            "the page or by `secateur skills experiment`"
        )
    if skill.identity is not None:
        skill = msgspec.structs.replace(skill, identity=_with_key(where, folder, skill.identity))
    check(where, skill)
    return skill


def _with_key(where: str, folder: Path, found: identity.Identity) -> identity.Identity:
    """`found` with the key from its file, which must be in `folder`."""
    file = found.key_file or (found.key.removeprefix(FILE) if found.key.startswith(FILE) else "")
    if not (folder / file).resolve().is_relative_to(folder.resolve()):
        raise ConfigError(f"{where}: the key at `$.identity` leads out of the folder of the skills' files")
    return msgspec.structs.replace(found, key=identity.read_key(folder / where, found), key_file="")


def difference(old: str, new: str, names: tuple[str, str]) -> str:
    """The unified diff of two texts; empty if they are equal."""
    before, after = (text.splitlines(keepends=True) for text in (old, new))
    return "".join(difflib.unified_diff(before, after, *names))
