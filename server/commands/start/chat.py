"""`secateur chat [MODEL|URL]`: a chat in the terminal, with the numbers of each reply."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory

from server.command_line import Parser
from server.commands.start import quick
from server.commands.start.settings import FirstServer
from server.commands.start.talk import KEY, Reply, Service
from server.errors import ConfigError, SecateurError

HERE = "http://127.0.0.1:8000"
DIM, PLAIN = "\033[2m", "\033[0m"
HELP = "Ctrl-D ends the chat, Ctrl-C a reply; /new forgets what was said."


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur chat",
        description="Talk to a skill of a server, or to a model that is served for this chat alone.",
    )
    options.add_argument(
        "target",
        nargs="?",
        default=HERE,
        metavar="MODEL|URL",
        help=f"a model, or a server's address (default: {HERE})",
    )
    options.add_argument("--key", help=f"the API key for a server (default: the environment variable {KEY})")
    options.add_argument("--skill", metavar="NAME", help="the skill to talk to (default: the key's first)")
    return options


def main(argv: Sequence[str]) -> int:
    """Talk until the input ends; returns 0. Raises SecateurError if there is nobody to talk to."""
    arguments = parser().parse_args(argv)
    if "://" in arguments.target:
        key = arguments.key or os.environ.get(KEY, "")
        if not key:
            raise ConfigError(f"a server needs an API key: --key KEY, or {KEY} in the environment")
        talk(Service(arguments.target, key), arguments.skill)
        return 0
    with served(Path(arguments.target)) as service:
        talk(service, arguments.skill)
    return 0


def talk(service: Service, skill: str | None) -> None:
    """Ask what is typed, line by line, and print the replies and their numbers."""
    skill = skill or next(iter(service.skills()), None)
    if skill is None:
        raise ConfigError("the key opens no skill: `secateur keys list FILE` shows what it opens")
    print(f"{skill} at {service.url}. {HELP}")
    messages: list[dict[str, str]] = []
    while (line := _typed()) is not None:
        if line == "/new":
            messages = []
            print("A new chat.")
        elif line:
            messages.append({"role": "user", "content": line})
            if (answer := _answer(service, skill, messages)) is None:
                messages.pop()
            else:
                messages.append({"role": "assistant", "content": answer})


def _answer(service: Service, skill: str, messages: Sequence[dict[str, str]]) -> str | None:
    """Print the reply as it arrives and return it; None if it failed, for the reason that is printed."""
    reply, texts = Reply(), []
    try:
        for text in service.reply(skill, messages, reply):
            texts.append(text)
            print(text, end="", flush=True)
    except KeyboardInterrupt:
        reply.finish_reason = "Ctrl-C"
    except SecateurError as error:
        print(f"{error}", file=sys.stderr)
        return None
    print(f"\n{_dim(f'[{reply}]')}")
    return "".join(texts)


@contextmanager
def served(model: Path) -> Iterator[Service]:
    """Serve `model` by a process of its own while the `with` block runs; its ledger is dropped afterwards."""
    if not quick.is_model(model):
        raise ConfigError(f"{model} is no model: give an artifact's directory, a GGUF file, or a server's address")
    with TemporaryDirectory(prefix="secateur-chat-") as directory:
        folder = Path(directory)
        artifact = quick.artifact_of(model, folder / "base")
        first = FirstServer(folder=folder, model=artifact, port=0, admin_port=0, page_port=0)
        key = first.write()
        command = [sys.executable, "-m", "server.commands", "serve", str(first.config)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
            try:
                assert process.stdout is not None
                lines = takewhile(lambda line: not line.startswith("Stop"), process.stdout)
                urls = [line.split()[1] for line in lines if line.startswith("API")]
                if not urls:
                    raise ConfigError(f"{model} cannot be served, for the reason above")
                yield Service(urls[0], key)
            finally:
                process.terminate()


def _typed() -> str | None:
    """The next line that is typed; None at the end of the input."""
    try:
        return input("> ").strip()
    except (EOFError, KeyboardInterrupt):
        print()
        return None


def _dim(text: str) -> str:
    """`text` in a weak colour on a terminal, unless NO_COLOR is set (https://no-color.org)."""
    coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    return f"{DIM}{text}{PLAIN}" if coloured else text
