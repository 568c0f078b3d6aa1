"""`secateur init`: asks three questions, or takes options, and writes a server's settings, a skill and a key."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from msgspec.structs import replace

from server.command_line import Parser
from server.commands.start.quick import artifact_of, is_model
from server.commands.start.settings import SYSTEM, FirstServer
from server.errors import ConfigError

MODEL = "Which model? The directory of an artifact or of a Hugging Face model, or a GGUF file"
TITLE = "What is the chat called?"
ORIGIN = "Which page may embed it? Its origin, such as https://www.example.com; empty for this machine's own page"


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur init",
        description="Write server.toml, a skill and a key, and print how to start and use them. On a terminal, what is "
        "not given as an option is asked for. No existing file is changed.",
    )
    options.add_argument("folder", type=Path, nargs="?", default=Path(), help="where the files go (default: here)")
    options.add_argument(
        "--model",
        type=Path,
        metavar="MODEL",
        help="an artifact; or a Hugging Face directory or GGUF file, which is imported into FOLDER/base first",
    )
    options.add_argument("--title", help="the heading of the chat (default: Chat)")
    options.add_argument(
        "--origin", action="append", metavar="URL", help="the origin of a page that may embed the chat; may be repeated"
    )
    options.add_argument("--skill", default="help", metavar="NAME", help="the skill's name (default: help)")
    options.add_argument("--system", default=SYSTEM, metavar="TEXT", help="the skill's prompt")
    options.add_argument("--port", type=_port, default=8000, help="the API's port (default: 8000)")
    options.add_argument("--admin-port", type=_port, default=9464, help="the admin listener's port (default: 9464)")
    options.add_argument("--page-port", type=_port, default=8001, help="the demo page's port (default: 8001)")
    options.add_argument("--json", action="store_true", help="print the files, the key and the lines as a JSON object")
    return options


def main(argv: Sequence[str]) -> int:
    """Write the files; returns 0. Raises ConfigError or ArtifactError, and then nothing is written."""
    arguments = parser().parse_args(argv)
    FirstServer(folder=arguments.folder, model=Path(), skill=arguments.skill).refuse_existing()  # before questions
    asked = sys.stdin.isatty()
    model = arguments.model or (Path(_ask(MODEL)) if asked else None)
    if model is None:
        raise ConfigError("name the model: --model MODEL")
    if not is_model(model):
        raise ConfigError(
            f"{model} is no model: give the directory of an artifact or of a Hugging Face model, or a GGUF"
        )
    title = arguments.title or (_ask(TITLE, "Chat") if asked else "Chat")
    origins = arguments.origin or ([_ask(ORIGIN)] if asked else [])
    first = FirstServer(
        folder=arguments.folder,
        model=model,
        skill=arguments.skill,
        title=title,
        system=arguments.system,
        origins=tuple(filter(None, origins)),
        port=arguments.port,
        admin_port=arguments.admin_port,
        page_port=arguments.page_port,
    )
    first = replace(first, model=artifact_of(model, arguments.folder / "base"))
    key = first.write()
    if arguments.json:
        files = {"config": str(first.config), "skill": str(first.skill_file), "keys": str(first.key_file)}
        lines = {"start": first.start, "ask": first.curl(key), "embed": first.line}
        print(json.dumps({**files, "key": key, **lines}, indent=2))
        return 0
    print(f"Written: {first.config}, {first.skill_file}, {first.key_file}")
    print(f"The key, shown this once:\n  {key}")
    print(f"Start the server, and open the page that it prints:\n  {first.start}")
    print(f"Ask from a program:\n  {first.curl(key)}")
    print(f"Put the chat on a page:\n  {first.line}")
    return 0


def _ask(question: str, default: str = "") -> str:
    """The answer that is typed, or `default` for an empty one."""
    try:
        return input(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
    except EOFError:
        raise ConfigError("a question was not answered: `secateur init --help` lists the options for all") from None


def _port(text: str) -> int:
    """A TCP port."""
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: write a number from 0 to 65535")
    return int(text)
