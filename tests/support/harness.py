"""The real server on free ports, in a thread of the test, with a fake runner instead of a model."""

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from server.artifact.checkpoint.lineage import Base, Lineage, Step
from server.config import Config
from server.engine.engine import Engine
from server.engine.scheduling.speculation import PromptLookup
from server.metering.ledger.ledger import Ledger
from server.models.knowledge import KnowledgeLoader
from server.models.loading import Loader
from server.models.rollout import CurrentModel, Model, Rollout
from server.models.shelf import Shelf
from server.skills.api_keys import Keys, digest
from server.skills.catalogue import Skills
from server.skills.skill import Skill
from server.text.tokenizer import Tokenizer as ServerTokenizer
from server.web.app import Apps, build
from server.web.http.protocol import ConnectionLimits
from server.web.listeners import Listener, address, bind
from server.web.listeners import serve as serve_listeners
from server.web.running import Parts
from tests.support.fakes import FakeRunner, ScriptRunner

KEY = "sk-test-of-help"
OTHER_KEY = "sk-test-of-other"
ORIGIN = "http://host.example:8001"
START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
HELP = Skill(
    name="help",
    title="Help desk",
    greeting="Hello",
    system="Be brief.",
    origins=(ORIGIN,),
    keys=(digest(KEY),),
    max_tokens=64,
)
OTHER = Skill(name="other", keys=(digest(OTHER_KEY),))
LINEAGE = Lineage(
    created="2026-11-24T12:00:00+00:00",
    base=Base(name="tiny", digest="0" * 64, license="Apache-2.0"),
    recipe={},
    steps=(
        Step(technique="wanda", options={"sparsity": "32:64"}, sparsity={}, seconds=1.0, parameters=10, digest="made"),
    ),
    versions={},
    files={"model.safetensors": "1" * 64},
)


def tokenizer(folder: Path) -> ServerTokenizer:
    """A tokenizer with one token per byte and ChatML's two special tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    made = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(START, special=True), AddedToken(END, special=True)])
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": TEMPLATE, "eos_token": END}))
    (folder / "config.json").write_text(json.dumps({"vocab_size": 258, "eos_token_id": 257}))
    return ServerTokenizer.load(folder)


class Served(NamedTuple):
    url: str
    admin: str
    page: str
    parts: Parts
    apps: Apps
    runner: FakeRunner
    stop: "Stop"

    @property
    def engine(self) -> Engine:
        engine = self.parts.rollout.models[0].engine
        assert isinstance(engine, Engine)
        return engine

    @property
    def tokenizer(self) -> ServerTokenizer:
        return self.parts.rollout.models[0].tokenizer


class Stop:
    """Stops the server from another thread, as SIGTERM does."""

    def __init__(self) -> None:
        self.event = asyncio.Event()
        self.loop: asyncio.AbstractEventLoop | None = None

    def __call__(self) -> None:
        assert self.loop is not None
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.event.set)


def parts(folder: Path, runner: FakeRunner, skills: Sequence[Skill] = (HELP, OTHER), **settings: Any) -> Parts:
    defaults = {"model": str(folder / "tiny"), "skills": str(folder), "ledger": str(folder / "usage.sqlite3")}
    defaults |= {"feedback": str(folder / "feedback.sqlite3")}  # also beside a ledger that is no file
    if "://" not in settings.get("ledger", "://"):
        settings["ledger"] = str(folder / settings["ledger"])
    config = msgspec.convert(
        {
            **defaults,
            "slots": 2,
            "max_waiting": 4,
            "context": 512,
            "port": 0,
            "admin_port": 0,
            "page_port": 0,
            **settings,
        },
        Config,
        dec_hook=lambda kind, value: Path(value),
    )
    look_up = PromptLookup() if config.look_up == "on" else None  # each pass of a fake is one token unless a test asks
    engine = Engine(runner, slots=config.slots, context=config.context, max_waiting=config.max_waiting, look_up=look_up)
    words = tokenizer(folder / "tiny")
    ledger = Ledger(config.ledger, instance=config.instance, busy_seconds=0.3, retry_seconds=0.1)
    rollout = Rollout({config.model: CurrentModel(Model("tiny", engine, words, LINEAGE, runner.choices))}, config.model)
    shelf = Shelf(KnowledgeLoader(config))
    shelf.arrange(skills, shelf.load(skills))
    return Parts(config, Skills(skills, Keys(config.keys)), ledger, rollout, Loader(config), shelf)


@contextmanager
def served(made: Parts, runner: FakeRunner) -> Iterator[Served]:
    apps = build(made)
    assert apps.page is not None
    limits = ConnectionLimits(made.config.head_seconds, made.config.send_seconds, made.config.connections)
    listeners = [
        Listener(app, bind("127.0.0.1", port), made.config.trusted_proxies, limits, apps.closed)
        for app, port in ((apps.public, 0), (apps.admin, made.config.admin_port), (apps.page, 0))
    ]
    urls = [address(listener.bound) for listener in listeners]
    stop = Stop()

    async def run() -> None:
        stop.loop = asyncio.get_running_loop()
        async with apps.running:
            await serve_listeners(listeners, apps.replies, drain_seconds=made.config.drain_seconds, stop=stop.event)

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    while not all(listener.started for listener in listeners):
        thread.join(0.01)
        assert thread.is_alive(), "the server did not start"
    try:
        yield Served(urls[0], urls[1], urls[2], made, apps, runner, stop)
    finally:
        stop()
        thread.join(120)
        assert not thread.is_alive(), "the server did not stop"


def rows(path: Path) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(path)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM requests ORDER BY opened_at")]


def ledger_of(served: Served) -> list[dict[str, Any]]:
    return rows(Path(served.parts.config.ledger))


def until(condition: Callable[[], object], seconds: float = 120.0) -> None:
    """Wait until `condition` holds; another thread makes it so."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.005)


def says(folder: Path, text: str, *, delay: float = 0.0) -> ScriptRunner:
    """A runner that replies `text`, one token per byte, and stops."""
    words = tokenizer(folder / "tiny")
    return ScriptRunner([*words.encode(text), next(iter(words.stop_ids))], words.vocabulary, delay=delay)


Serve = Callable[..., Served]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Starts servers that reply `text`, or by `runner`, and are held after `passes` forward passes if given."""
    with ExitStack() as stack:

        def start(
            text: str = "Hello!",
            *,
            runner: FakeRunner | None = None,
            delay: float = 0.0,
            passes: int | None = None,
            **settings: Any,
        ) -> Served:
            chosen = runner or says(tmp_path, text, delay=delay)
            if passes is not None:
                chosen.hold(passes)
            server = stack.enter_context(served(parts(tmp_path, chosen, **settings), chosen))
            if passes is not None:
                stack.callback(chosen.release)  # before the server stops
            return server

        yield start
