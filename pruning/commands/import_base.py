"""`secateur import BASE`: reads a base model into a directory that can be pruned and served, and says what it lacks."""

import argparse
import logging
import sys
from collections.abc import Sequence

from pruning.commands.failures import ANEW, exit_code
from pruning.errors import ModelRefused
from pruning.model.outline import outline
from pruning.model.source import REMEDY, refuse_template
from pruning.recipe.sources import locate
from server.command_line import Parser
from server.commands.artifact.base_cache import add_base_cache
from server.errors import ArtifactError, InvalidRequest
from server.text.chat_template import GREETING
from server.text.tokenizer_files import read_template


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = Parser(
        prog="secateur import",
        description="Read a base model into a directory, as `secateur prune` does first, say what it lacks, and print "
        "the directory. A model that was imported already is not read again.",
    )
    options.add_argument("base", help="a Hugging Face directory, a GGUF file, or package:module/file.gguf")
    options.add_argument(
        "--chat-template", default="", metavar="FILE", help="a Jinja file used in place of the model's own template"
    )
    options.add_argument(
        "--for-chat", action="store_true", help="refuse a model that could not serve a chat before its weights are read"
    )
    add_base_cache(options)
    return options


def main(argv: Sequence[str]) -> int:
    """Print the directory as the last line; returns as `exit_code`."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return exit_code(lambda: _import(arguments), ANEW)


def _import(arguments: argparse.Namespace) -> int:
    fault = chat_fault(arguments.base, arguments.chat_template)  # first: the import itself may take minutes
    if fault and arguments.for_chat:
        raise ModelRefused(f"{arguments.base} could not serve a chat: {fault}; {REMEDY}")
    if fault:
        _warn(fault)
    from pruning.stages.inputs import base_artifact
    from server.text.tokenizer import Tokenizer

    artifact = base_artifact(arguments.base, arguments.base_cache, arguments.chat_template)
    try:
        Tokenizer.load(artifact.path).chat(GREETING)
    except (ArtifactError, InvalidRequest) as error:
        if not fault:
            _warn(str(error))
    print(artifact.path)
    return 0


def _warn(fault: str) -> None:
    print(f"It can be pruned and evaluated, but not serve a chat: {fault}\nThen {REMEDY}.", file=sys.stderr)


def chat_fault(base: str, template: str) -> str:
    """Why `base` could not serve a chat, by its files' headers alone; empty if it can.

    Raises ModelRefused for what is no model, or a `template` that cannot be used in place of its own.
    """
    found = outline(locate(base))
    if template:
        path = locate(template)
        refuse_template(read_template(path), found.special_tokens, str(path))
        return ""
    if found.chat_template is None:
        return "it has no chat template"
    try:
        refuse_template(found.chat_template, found.special_tokens, "its own chat template")
    except ModelRefused as error:
        return error.message
    return ""
