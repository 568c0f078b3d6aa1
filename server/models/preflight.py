"""Checks in a second, without torch, whether the models that skills name can be served; reads no weight."""

import importlib.util
import json
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from server.artifact.checkpoint import chain
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.layouts import LayoutTable
from server.config import Config, registered
from server.engine.native.plan.families import FAMILIES
from server.errors import ArtifactError, ConfigError
from server.models.suitability import own_tokens
from server.skills.skill import Skill
from server.text.chat_template import GREETING
from server.text.tokenizer import Tokenizer

logger = logging.getLogger(__name__)


def check_models(config: Config, skills: Iterable[Skill]) -> None:
    """Raise ArtifactError or ConfigError for a model that cannot be served, or cannot answer one of its skills.

    Warns of a directory that is not there, as before it is made. A model of the registry is left out: the registry is
    asked when it is loaded.
    """
    from server.models.remote import is_remote, read_remote  # late: `prune --check` does without its HTTP client

    checked: dict[str, tuple[Tokenizer, int]] = {}
    for skill in skills:
        _check_knowledge(skill)
        reference = skill.model or config.model
        if skill.encoder or registered(reference) is not None:
            continue
        if reference not in checked:
            remote = read_remote(Path(reference)) if is_remote(reference) else None
            path = Path(remote.artifact if remote else reference)
            if not path.exists():
                logger.warning("%s is not there (yet), so nothing is known of the model", path)
                continue
            context = remote.context if remote else config.context
            checked[reference] = check_model(path, config.chat_template), context
        tokenizer, context = checked[reference]
        if own_tokens(skill, reference, tokenizer) >= context:
            raise ConfigError(
                f"the skill {skill.name!r} begins every prompt with {context} tokens or more, which is `context` of "
                f"{reference if is_remote(reference) else 'the settings'}: no reply has room"
            )


def _check_knowledge(skill: Skill) -> None:
    """Raise ArtifactError unless the skill's knowledge is one; warn if it is not there, as before it is built."""
    if not skill.knowledge or registered(skill.knowledge) is not None:
        return
    path = Path(skill.knowledge)
    if not path.exists():
        logger.warning("%s, the knowledge of the skill %r, is not there (yet)", path, skill.name)
    elif not record.read(path).is_knowledge:
        raise ArtifactError(f"{path} is no knowledge, which the skill {skill.name!r} needs: `secateur knowledge build`")


def check_model(path: Path, template: Path | None = None) -> Tokenizer:
    """The tokenizer of the artifact in `path`; raises ArtifactError where it could not serve a chat.

    `template` is used if the model has none.
    """
    lineage = record.read(path)
    if lineage.is_knowledge:
        raise ArtifactError(f"{path} is a knowledge and no model: name it as `knowledge` of a skill")
    if form := chain.exported(lineage):
        raise ArtifactError(f"{path} is an export for other software ({form}): name the artifact it was made from")
    if missing := next((name for name in sorted(lineage.files) if not (path / name).exists()), None):
        raise ArtifactError(f"{path / missing} is missing, though {record.FILE} names it; copy the artifact again")
    try:
        config = msgspec.json.decode((path / "config.json").read_bytes(), type=dict[str, Any])
    except (OSError, msgspec.DecodeError) as error:
        raise ArtifactError(f"{path / 'config.json'} cannot be read: {error}") from None
    refuse_unknown(config, path / "config.json")
    refuse_layouts(path / record.WEIGHTS)
    tokenizer = Tokenizer.load(path, template)
    tokenizer.chat(GREETING)
    return tokenizer


def refuse_unknown(config: Mapping[str, Any], place: Path) -> None:
    """Raise ArtifactError for a model that brings code, or whose type neither runner knows."""
    if "auto_map" in config:
        raise ArtifactError(f"{place} has an `auto_map`: code that comes with a model is never run")
    kind = str(config.get("model_type"))
    if kind not in FAMILIES and not known_to_transformers(kind):
        raise ArtifactError(
            f"{place}: model_type is {kind!r}, which is no model of the installed transformers; the native runner has "
            f"{', '.join(FAMILIES)}"
        )


def known_to_transformers(kind: str) -> bool:
    """Whether the installed transformers has a folder for this `model_type`, which is found without importing it."""
    found = importlib.util.find_spec("transformers")
    if found is None or found.origin is None or not kind.isidentifier():
        return False
    models = Path(found.origin).parent / "models"
    return any((models / name / "__init__.py").exists() for name in (kind, kind.removesuffix("_text")))


def refuse_layouts(path: Path) -> None:
    """Raise ArtifactError where the header of the weights file is damaged, or has layouts of a newer version."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        LayoutTable.read(header.get("__metadata__"))
    except (OSError, ValueError, AttributeError, MemoryError, OverflowError) as error:
        raise ArtifactError(f"{path} cannot be read: {error}; copy or make it again") from None
