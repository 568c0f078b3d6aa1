"""What a bundle holds beside wheels: settings, skills, verified models and knowledge, and a script that makes keys."""

import json
import os
import re
import shlex
import shutil
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from msgspec.structs import asdict

from server.config import Config
from server.errors import ConfigError
from server.models.knowledge import KnowledgeLoader
from server.models.loading import Loader
from server.models.reload import open_revisions
from server.skills import api_keys
from server.skills.api_keys import Key
from server.skills.catalogue import Skills
from server.skills.revisions.splitting import with_rivals
from server.storage.packages import PACKAGE
from server.storage.postgres import is_postgres
from server.web.api.admin.skills.knowledge import FOLDER

PREFIX = "@PREFIX@"
"""Where the bundle is installed; the install script puts the real path in its place."""
LEFT_OUT = ("registry", "registry_seconds", "page_port", "page_docs", "webhook", "webhook_secret", "traces",
            "rate_limits", "rate_limits_fail", "admin_login", "instance", "feedback", "conversation_key",
            "prefix_cache")  # fmt: skip
"""Settings that name other machines, secrets, or what the bundle resolves."""
COPIED = {"signers": "signers", "chat_template": "chat_template.jinja"}
"""Settings whose files go along, and their names there."""
TOLD = ("webhook", "traces", "rate_limits", "admin_login", "conversation_key")
MODEL_FILES = {".safetensors", ".json", ".txt", ".jinja", ".md", ".sig", ""}
"""Endings of the files of a model: no format that may hold code."""
REFERENCE = r'^({field}\s*=\s*)(".*?"|\'.*?\')'


class Written(NamedTuple):
    """What else a bundle needs, and what it lacks."""

    packages: set[str]
    """The modules of packages that only hold data: encoders."""
    left_out: list[str]
    """A sentence for each setting that was left out."""


def write(folder: Path, file: Path, settings: Config) -> Written:
    """Write everything but wheels to `folder`.

    Models and knowledge are verified as for serving. Raises SecateurError.
    """
    _check_revisions(file, settings)
    skills = Skills.read(settings.skills)
    answering = with_rivals(skills)
    models = Copies(folder / "models")
    knowledge = Copies(folder / "knowledge")
    loader, readings = Loader(settings), KnowledgeLoader(settings)
    for reference in {settings.model, *(skill.model for skill in answering if skill.model)}:
        opened = loader.open(reference)
        if opened.remote is not None:
            raise ConfigError(f"{reference} runs on another machine: a bundle takes models that run here")
        models.add(reference, opened.artifact.path, MODEL_FILES)
    encoders = {skill.encoder for skill in skills if skill.encoder}
    for reference in {skill.knowledge for skill in answering if skill.knowledge}:
        found = readings.open(reference).knowledge
        knowledge.add(reference, found.path, None)
        encoders |= {found.manifest.encoder.reference} if found.manifest.encoder else set()
    etc = folder / "etc"
    etc.mkdir()
    _write_skills(etc / "skills", settings.skills, models, knowledge)
    _write_settings(etc / "server.toml", file, settings, models)
    given = tomllib.loads(file.read_text())
    for field, name in ((field, name) for field, name in COPIED.items() if field in given):
        shutil.copyfile(given[field], etc / name)
    _write_keys(folder / "keys.sh", settings, [skill.name for skill in skills])
    left_out = [
        f"left out: `{name}`; add it to etc/server.toml if it is reachable there" for name in TOLD if name in given
    ]
    return Written({_module(encoder) for encoder in encoders}, left_out)


def _check_revisions(file: Path, settings: Config) -> None:
    """Raise ConfigError if a revision is published: it lies in a database, and a bundle takes files."""
    if settings.skill_revisions == "off" or not Path(settings.skills_at).exists():
        return
    with closing(open_revisions(settings)) as revisions:
        current = {move.skill: move.number for move in revisions.moves()}
    if published := sorted(name for name, number in current.items() if number):
        folder = settings.skills.parent if settings.skills.is_file() else settings.skills
        raise ConfigError(
            f"{file}: a bundle takes skills from files, and published revisions of {', '.join(published)} are in a "
            f"database: `secateur skills export {folder} --server {file}` writes them, in place of older files; then "
            'set skill_revisions = "off" - at `$.skill_revisions`'
        )


def _module(encoder: str) -> str:
    """The module of a package that holds an encoder; raises ConfigError for a folder."""
    if not encoder.startswith(PACKAGE):
        raise ConfigError(f"the encoder {encoder} is a folder of this machine: a bundle takes encoders of packages")
    return encoder.removeprefix(PACKAGE).partition("/")[0]


class Copies:
    """Folders copied below `place`, by the reference that named them."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._names: dict[str, str] = {}

    def add(self, reference: str, source: Path, endings: set[str] | None) -> None:
        """Copy `source`; raises ConfigError for a file that has none of `endings`, or is a link out of the folder."""
        for path in source.rglob("*"):
            if path.is_symlink() or (endings is not None and path.is_file() and path.suffix not in endings):
                raise ConfigError(f"{path} is no file of a model in safetensors, which is all that a bundle holds")
        name = re.sub(r"[^A-Za-z0-9._-]", "-", source.resolve().name)
        taken = name in self._names.values()
        self._names[reference] = name = f"{name}-{len(self._names)}" if taken else name
        shutil.copytree(source, self._place / name)

    def __contains__(self, reference: object) -> bool:
        return isinstance(reference, str) and reference in self._names

    def path(self, reference: str) -> str:
        """Where the copy is once it is installed."""
        return f"{PREFIX}/{self._place.name}/{self._names[reference]}"


def _write_skills(folder: Path, source: Path, models: Copies, knowledge: Copies) -> None:
    """Copy the skills' files, with models and knowledge where the bundle has them."""
    source = Path(os.path.normpath(source))
    root = source if source.is_dir() else source.parent
    folder.mkdir()
    for path in _files(source, root):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".toml":
            target.write_text(_moved(path, models, knowledge))
        else:
            shutil.copyfile(path, target)


def _files(source: Path, root: Path) -> list[Path]:
    """The files that skills name, and what else is in their folder `root`, but hidden files and the page's uploads."""
    skills = root.glob("[!.]*.toml") if source.is_dir() else [source]
    found = {path for skill in skills for path in _named(skill, root)}
    for path in root.rglob("*") if source.is_dir() else ():
        parts = path.relative_to(root).parts
        if path.is_file() and parts[0] != FOLDER and not any(part.startswith(".") for part in parts):
            found.add(path)
    return sorted(found)


def _named(skill: Path, root: Path, *, rival: bool = False) -> Iterator[Path]:
    """A skill's file and the files below `root` that it names, with its rival and that one's."""
    given = tomllib.loads(skill.read_text())
    yield skill
    for name in filter(None, (given.get("system_file"), given.get("identity", {}).get("key_file"))):
        path = Path(os.path.normpath(skill.parent / name))
        if path.is_relative_to(root):
            yield path
    if "experiment" in given and not rival:
        yield from _named(Path(os.path.normpath(skill.parent / given["experiment"]["file"])), root, rival=True)


def _moved(path: Path, models: Copies, knowledge: Copies) -> str:
    """The skill's text with new references; raises ConfigError if a file of a secret is named."""
    text = path.read_text()
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None
    found = given.get("identity")
    if isinstance(found, dict) and str(found.get("key", "")).startswith("file:"):
        raise ConfigError(f"{path}: `identity.key` is a secret in a file, which a bundle does not take: leave it out")
    for field, copies in (("model", models), ("knowledge", knowledge)):
        if given.get(field) in copies:  # a draft below the folder, which is not served, may name others
            new = json.dumps(copies.path(given[field]))
            place = re.search(REFERENCE.format(field=field), text, re.MULTILINE)
            if place is None:
                raise ConfigError(f"{path}: write `{field}` as a string on one line")
            text = text[: place.start()] + place[1] + new + text[place.end() :]
    return text


def _write_settings(target: Path, file: Path, settings: Config, models: Copies) -> None:
    """Write the server's settings with the paths of an installed bundle."""
    given: dict[str, Any] = tomllib.loads(file.read_text())
    places = {
        "model": models.path(settings.model),
        "skills": f"{PREFIX}/etc/skills",
        "ledger": f"{PREFIX}/var/usage.sqlite3",
        "keys": f"{PREFIX}/etc/keys.json",
    }
    if is_postgres(settings.ledger):
        raise ConfigError(
            f"{file} keeps its ledger in PostgreSQL, on another machine: a bundle serves with an SQLite file"
        )
    for name, place in {**COPIED, "admin_keys": "admin.json"}.items():
        if name in given:
            places[name] = f"{PREFIX}/etc/{place}"
    kept = {name: value for name, value in given.items() if name not in LEFT_OUT}
    lines = (f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in {**kept, **places}.items())
    target.write_text("".join(lines))


def _write_keys(target: Path, settings: Config, skills: Iterable[str]) -> None:
    """Write a script that makes keys of the same rights as those here; the keys themselves never leave."""
    lines = ["# Run by install.sh: makes new keys with the rights of the old ones, and prints each once.\n"]
    lines += (f'"$secateur" keys create --file "$etc/keys.json" {words}\n' for words in _rights(settings, skills))
    if settings.admin_keys is not None:
        lines.append('"$secateur" keys create --file "$etc/admin.json" --admin all\n')
    target.write_text("".join(lines))


def _rights(settings: Config, skills: Iterable[str]) -> Iterator[str]:
    """The options of `secateur keys create` for each valid key, or for one that opens every skill."""
    found = api_keys.read(settings.keys).keys if settings.keys and settings.keys.exists() else ()
    valid = [key for key in found if not key.revoked and not key.expired and key.skills]
    if not valid:
        yield shlex.join(word for skill in skills for word in ("--skill", skill))
    for key in valid:
        yield shlex.join(_options(key))


def _options(key: Key) -> Iterator[str]:
    for option, values in (
        ("--skill", key.skills),
        ("--group", key.groups),
        ("--note", (key.note,) if key.note else ()),
    ):
        for value in values:
            yield from (option, value)
    for name, limit in asdict(key.limits).items() if key.limits else ():
        if limit is not None:
            yield from (f"--{name.replace('_', '-')}", str(limit))
