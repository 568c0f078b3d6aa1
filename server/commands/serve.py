"""`secateur serve CONFIG.toml|MODEL`: opens what the settings name, prints what was chosen and why, and serves it.

Every mistake in the files is reported before the first listener answers.
"""

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from msgspec.structs import replace

from server.command_line import Parser
from server.commands.start import quick
from server.config import Config, load, warnings
from server.errors import ArtifactError, ConfigError, RegistryError, reason
from server.metering.audit.log import AuditLog
from server.metering.ledger.connection import instance_of
from server.metering.ledger.ledger import Ledger
from server.models.knowledge import KnowledgeLoader
from server.models.loading import ALLOW_FAILED_GATE, Loader, Opened, check_names
from server.models.reload import check_prompts, load_skills, refused_model
from server.models.rollout import Rollout
from server.models.shelf import Shelf
from server.skills import api_keys
from server.skills.api_keys import Keys
from server.skills.catalogue import Skills
from server.skills.counters.store import MEANWHILE
from server.skills.revisions.splitting import with_rivals
from server.storage.postgres import is_postgres, without_password
from server.web import listeners, logs
from server.web.app import Apps, build
from server.web.http.protocol import ADMIN_CONNECTIONS, ConnectionLimits, raise_file_limit
from server.web.listeners import Listener
from server.web.running import Parts
from server.web.signals import Signals

SWITCH_SECONDS = 0.0005
"""Interpreter switch interval: the engine's thread must not wait 5 ms for the loop's between passes of a few."""
WATCH_SECONDS = 0.25
logger = logging.getLogger(__name__)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur serve",
        description="Serve the skills of a configuration file; or a model with a default skill and a key, which are "
        "made at its first start.",
    )
    options.add_argument(
        "config",
        type=Path,
        metavar="CONFIG.toml|MODEL",
        help="the server's settings or their folder, or a model's directory or GGUF",
    )
    options.add_argument(
        "--metrics-compat", choices=["none", "vllm"], help="overrides the setting `metrics_compat` of the file"
    )
    options.add_argument(
        "--check", action="store_true", help="read the files and try the ports, then exit; loads and serves nothing"
    )
    options.add_argument(
        ALLOW_FAILED_GATE,
        action="store_true",
        help="serve a signed directory whose own record failed a gate; shown at start, in /v1/models and in metrics",
    )
    return options


def main(argv: Sequence[str]) -> int:
    """Serve until SIGTERM or SIGINT, then exit with 0 after a clean shutdown, 1 if an engine failed."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    arguments = parser().parse_args(argv)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # its default would end the process while it starts
    config = load(quick.settings_of(arguments.config) if quick.is_model(arguments.config) else arguments.config)
    if arguments.check:
        check(config)
        return 0
    logs.configure(config.log, config.log_level)
    sys.setswitchinterval(SWITCH_SECONDS)
    early: list[int] = []  # SIGHUPs that arrive while models load, which may take minutes
    signal.signal(signal.SIGHUP, lambda number, _: early.append(number))
    # The kernel drops signals with a default action for a container's first process.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    config = replace(config, metrics_compat=arguments.metrics_compat or config.metrics_compat)
    parts = prepare(config, allow_failed_gate=arguments.allow_failed_gate)
    return leave(run(parts, early))


def leave(code: int) -> NoReturn:
    """End the process now: all is closed, and freeing models and modules would take seconds of CPU time."""
    with contextlib.suppress(OSError, ValueError):  # nobody may read the output any more
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def check(config: Config) -> None:
    """Read every file, bind every port and say so, without loading a model; raises ConfigError or ArtifactError."""
    from server.models.preflight import check_models  # late: only this needs it

    warn(config)
    skills = load_skills(config)
    check_models(config, with_rivals(skills))
    check_keys(config)
    bound = bind_all(config)
    for one in bound.values():
        one.close()
    names = ", ".join(skill.name for skill in skills)
    print(f"ok: settings, keys, models' files, {len(bound)} ports, and the skills {names}; no model was loaded")


def prepare(config: Config, *, allow_failed_gate: bool = False) -> Parts:
    """Open what `config` names: keys, skills, models, ledger. Raises a SecateurError for what cannot be used."""
    warn(config)
    check_keys(config)
    skills = Skills(load_skills(config), Keys(config.keys))
    loader = Loader(config, allow_failed_gate=allow_failed_gate)
    answering = with_rivals(skills)
    wanted_models = dict.fromkeys(skill.model or config.model for skill in answering)
    opened = {wanted: open_model(config, loader, wanted) for wanted in wanted_models}
    check_names({wanted: found.name for wanted, found in opened.items()})
    ledger = Ledger(config.ledger, instance=instance_of(config.ledger, config.instance))
    rollout = Rollout({wanted: loader.load(found) for wanted, found in opened.items()}, config.model)
    check_prompts(skills, rollout.of)
    loader.encoders.arrange(skills, loader.encoders.load(skills))
    shelf = Shelf(KnowledgeLoader(config))
    shelf.arrange(answering, shelf.load(answering))
    return Parts(config, skills, ledger, rollout, loader, shelf)


def open_model(config: Config, loader: Loader, wanted: str) -> Opened:
    """The verified model; a refusal is also recorded in the audit log, if the ledger exists. Raises SecateurError."""
    try:
        return loader.open(wanted)
    except (ArtifactError, RegistryError) as error:
        if is_postgres(config.ledger) or Path(config.ledger).exists():
            try:
                log = AuditLog(config.ledger)
                log.put(refused_model(wanted, reason(error)))
                log.close()
            except ConfigError as unusable:
                logger.error("The audit log does not record that %s was refused: %s", wanted, unusable)
        raise


def warn(config: Config) -> None:
    """Log the settings that are rarely intended."""
    for warning in warnings(config):
        logger.warning("%s", warning)


def check_keys(config: Config) -> None:
    """Raise ConfigError for unreadable or damaged key files: every request would be refused."""
    for path in (config.keys, config.admin_keys):
        api_keys.check(path)


def run(parts: Parts, early: Sequence[int] = ()) -> int:
    """Bind the listeners, build and announce the apps, and serve until a signal or a failed engine.

    Returns 0, or 1 if an engine failed. `early` are the SIGHUPs received while models loaded: they cause a reload.
    """
    bound = bind_all(parts.config)
    # The demo page shows the public port, which is known only now if the file says 0.
    parts = replace(parts, config=replace(parts.config, port=bound["skills"].getsockname()[1]))
    apps = build(parts)
    gc.collect()
    gc.freeze()  # torch alone has 500,000 objects: a full collection among them would hold every reply for 0.2 s
    return asyncio.run(serve(parts, apps, bound, early))


def bind_all(config: Config) -> dict[str, socket.socket]:
    """A listening socket for `skills`, `metrics` and, if configured, `page`; ConfigError if an address is taken."""
    wanted = {"skills": (config.host, config.port), "metrics": (config.admin_host, config.admin_port)}
    if config.page_port is not None:
        wanted["page"] = (config.host, config.page_port)
    with contextlib.ExitStack() as stack:
        sockets = {name: stack.enter_context(listeners.bind(*place)) for name, place in wanted.items()}
        stack.pop_all()
        return sockets


def listen(config: Config, apps: Apps, bound: dict[str, socket.socket]) -> list[Listener]:
    """A listener for each app on its socket; they do not accept yet."""
    served = {"skills": apps.public, "metrics": apps.admin, "page": apps.page}
    most = {"skills": raise_file_limit(config.connections)}
    return [
        Listener(app, one, config.trusted_proxies, limits_of(config, most.get(name, ADMIN_CONNECTIONS)), apps.closed)
        for name, one in bound.items()
        if (app := served[name]) is not None
    ]


def limits_of(config: Config, connections: int) -> ConnectionLimits:
    """The configured deadlines, with at most `connections` open connections."""
    return ConnectionLimits(config.head_seconds, config.send_seconds, min(connections, config.connections))


async def serve(parts: Parts, apps: Apps, bound: dict[str, socket.socket], early: Sequence[int]) -> int:
    """Announce and serve the apps until SIGTERM, SIGINT or a failed engine, then drain; returns as `run`."""
    listening = listen(parts.config, apps, bound)
    stop = asyncio.Event()
    signals = Signals(stop, apps.reloader.on_signal)
    signals.install()  # before the announcement: who has read it may send a signal
    announce(parts, apps, {name: listeners.address(one) for name, one in bound.items()})
    if early:
        signals.reload()
    failing = asyncio.create_task(engine_failed(parts.rollout, apps, stop))
    async with apps.running:
        await listeners.serve(listening, apps.replies, drain_seconds=parts.config.drain_seconds, stop=stop)
    return int(await failing)


async def engine_failed(rollout: Rollout, apps: Apps, stop: asyncio.Event) -> bool:
    """Set `stop` when an engine fails, since only a new process recovers; returns False once the server drains."""
    while not apps.replies.draining:
        if (reason := rollout.failure) is not None:
            logger.error("Shutting down for a restart: %s", reason)
            stop.set()
            return True
        await asyncio.sleep(WATCH_SECONDS)
    return False


def announce(parts: Parts, apps: Apps, addresses: dict[str, str]) -> None:
    """Print each model with its skills and automatic choices, then each listener's address."""
    for model in parts.rollout.models:
        names = [one.name for one in parts.skills if not one.encoder and parts.rollout.of(one.model) is model]
        print(f"{model.name}: skills {', '.join(names)}")
        for choice in model.choices:
            print(f"  {choice.subject}: {choice.value} ({choice.reason})")
        print(f"  counting: {model.tokenizer.encoding_reason}")
    for named, names in parts.loader.encoders.users(parts.skills):
        print(f"{named.name}: skills {', '.join(names)} embed, {named.encoder.dimension} numbers, {named.most} tokens")
    if parts.ledger.recovered:
        print(f"  ledger: {parts.ledger.recovered} replies of a server that died were closed as `recovered`")
    print(f"ledger   {without_password(parts.config.ledger)}")
    shared = parts.config.conversation_storage == "database"
    print(f"ratings  {'in the database of chats' if shared else parts.config.feedback_file}")
    print(f"chats    {chats_of(parts.config)}")
    print(f"limits   {store_of(parts.config)}")
    print(f"API      {addresses['skills']}/v1")
    print(f"metrics  {addresses['metrics']}/metrics{' (with a key of `admin_keys`)' * bool(parts.config.admin_keys)}")
    login = parts.config.admin_login
    print(f"usage    {addresses['metrics']}/admin{f' (sign in by {login.issuer})' if login else ''}")
    if apps.page is not None:
        print(f"page     {addresses['page']}/")
    print("Stop with Ctrl-C.", flush=True)


def chats_of(config: Config) -> str:
    """Where visitors' words are kept, and for how long after the last."""
    hours = config.conversation_life / 3600
    long = f"{hours / 24:g} days" if hours >= 48 else f"{hours:g} hours"
    if config.conversation_storage == "memory":
        return f"this process, for {long}; a restart ends them (conversation_storage)"
    where = without_password(config.conversations_at)
    return f"{where}, for {long}, {'encrypted' if config.conversation_key else 'not encrypted (conversation_key)'}"


def store_of(config: Config) -> str:
    """The store of rate limits without its credentials, and what holds while it is away."""
    url = urlsplit(config.rate_limits)
    if not url.netloc:
        return "this process"
    return f"{url.scheme}://{url.netloc.rpartition('@')[2]} (while it is away, {MEANWHILE[config.rate_limits_fail]})"
