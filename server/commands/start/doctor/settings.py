"""Checks of what a server's settings name: files, skills, models, stores, ports, disk."""

import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

from server.artifact.checkpoint.lineage import FILE
from server.artifact.signing import envelope
from server.artifact.signing.keys import Signers
from server.commands.start.doctor.finding import Finding, findings
from server.commands.start.settings import check_model
from server.config import Config, registered, warnings
from server.engine.native.pages import available
from server.errors import ConfigError
from server.models.reload import load_skills
from server.skills import api_keys
from server.storage.connection import connect
from server.storage.database import Options
from server.storage.digests import FileDigests
from server.storage.postgres import is_postgres, without_password
from server.web import listeners

LEAST_DISK = 1 << 30


def settings(config: Config) -> Iterator[Finding]:
    """Every check of the settings."""
    for warning in warnings(config):
        yield Finding("settings", "warning", warning, "Change it unless it is meant.")
    for name, check in {
        "skills": lambda: skills(config),
        "keys": lambda: keys(config),
        "model": lambda: models(config),
        "ledger": lambda: ledger(config),
        "rate limits": lambda: rate_limits(config),
        "ports": lambda: ports(config),
    }.items():
        yield from findings(name, check)


def skills(config: Config) -> Iterator[Finding]:
    """The files of skills."""
    names = [skill.name for skill in load_skills(config)]
    yield Finding("skills", "ok", f"{len(names)}: {', '.join(names)}")


def keys(config: Config) -> Iterator[Finding]:
    """The files of keys: readable, and by their owner only."""
    for path in filter(None, (config.keys, config.admin_keys)):
        api_keys.check(path)
        if not path.exists():
            yield Finding("keys", "warning", f"{path} is missing: it opens nothing", "`secateur keys create` makes it.")
        elif path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            mode = stat.filemode(path.stat().st_mode)
            yield Finding("keys", "warning", f"{path} is {mode}", f"Others may use it: chmod 600 {path}")
        else:
            yield Finding("keys", "ok", f"{path}: {len(api_keys.read(path).keys)} keys")


def models(config: Config) -> Iterator[Finding]:
    """The models that skills name: there, with a chat template, and small enough for the memory."""
    for reference in dict.fromkeys(skill.model or config.model for skill in load_skills(config) if not skill.encoder):
        if registered(reference) is not None:
            yield Finding("model", "ok", f"{reference}: the registry is asked at the start")
            continue
        path = Path(reference)
        if not path.exists():
            yield Finding("model", "failed", f"{path} does not exist", "Prune one, or correct `model`.")
            continue
        check_model(path, config.chat_template)
        if config.signers is not None:
            envelope.signed_record(path, Signers.read(config.signers), FileDigests())
            yield Finding("signature", "ok", f"{path} is signed by an allowed signer")
        yield from room(path, config)


def room(path: Path, config: Config) -> Iterator[Finding]:
    """Whether the model's files and its cache fit into the free memory."""
    from server.artifact.checkpoint.reader import Artifact  # late: torch takes seconds
    from server.engine.native.plan import Refused
    from server.engine.native.plan.decoder import plan_of

    weights = sum(file.stat().st_size for file in path.iterdir() if file.name != FILE)
    artifact = Artifact.open(path)
    try:
        cache = plan_of(artifact.config, artifact.names()).cache_bytes(config.slots * config.context, config.key_bits)
    except Refused as refused:
        yield Finding("model", "warning", f"{path}: {refused}", "transformers serves it, slower.")
        return
    need, free = weights + cache, available()
    found = f"{path}: {weights >> 20} MB of weights and {cache >> 20} MB of cache, {free >> 20} MB are free"
    if need > free:
        yield Finding("model", "failed", found, "Lower `slots` or `context`, set `key_bits = 8`, or prune more.")
    else:
        yield Finding("model", "ok", found)


def ledger(config: Config) -> Iterator[Finding]:
    """The ledger's database, without changing it, and the room on its disk."""
    if is_postgres(config.ledger):
        connect(config.ledger, Options(failure=ConfigError)).close()
        yield Finding("ledger", "ok", f"{without_password(config.ledger)} answers")
        return
    path = Path(config.ledger)
    folder = next(parent for parent in path.resolve().parents if parent.exists())
    if path.exists():
        database = connect(str(path), Options(failure=ConfigError, read_only=True))
        database.execute("SELECT count(*) FROM sqlite_master")  # opening alone reads nothing
        database.close()
    for place in (folder, path):
        if place.exists() and not _writable(place):
            yield Finding("ledger", "failed", f"{place} is not writable", "Give it to the account that serves.")
            return
    free = shutil.disk_usage(folder).free
    found = f"{path} {'is there' if path.exists() else 'will be made'}; {free >> 20} MB of disk are free"
    if free < LEAST_DISK:
        yield Finding("ledger", "warning", found, "Free some disk: a full one stops all replies.")
    else:
        yield Finding("ledger", "ok", found)


def rate_limits(config: Config) -> Iterator[Finding]:
    """The store of rate limits."""
    if config.rate_limits.startswith("memory:"):
        yield Finding("rate limits", "ok", "counted in this process")
        return
    from limits.storage import storage_from_string

    if storage_from_string(config.rate_limits).check():
        yield Finding("rate limits", "ok", "Redis answers")
    else:
        yield Finding("rate limits", "failed", "Redis does not answer", "Start it, or correct `rate_limits`.")


def ports(config: Config) -> Iterator[Finding]:
    """The listeners' addresses."""
    places = {"API": (config.host, config.port), "admin": (config.admin_host, config.admin_port)}
    if config.page_port is not None:
        places["page"] = (config.host, config.page_port)
    for name, (host, port) in places.items():
        try:
            listeners.bind(host, port).close()
        except ConfigError as error:
            remedy = "Stop what listens there (a running server of yours?), or choose another port."
            yield Finding("ports", "warning", f"{name}: {error}", remedy)
        else:
            yield Finding("ports", "ok", f"{name}: {host}:{port} is free")


def _writable(path: Path) -> bool:
    """Whether this account may write to `path`."""
    return os.access(path, os.W_OK)
