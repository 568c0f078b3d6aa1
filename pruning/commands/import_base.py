"""`secateur import BASE`: reads a base model into a directory that can be pruned and served, and says what it lacks."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from pruning.commands.failures import exit_code
from server.commands.artifact.base_cache import add_base_cache
from server.errors import ArtifactError, InvalidRequest


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    options = argparse.ArgumentParser(
        prog="secateur import",
        description="Read a base model into a directory, as `secateur prune` does first, say what it lacks, and print "
        "the directory. A model that was imported already is not read again.",
    )
    options.add_argument("base", help="a Hugging Face directory, a GGUF file, or package:module/file.gguf")
    options.add_argument(
        "--chat-template", default="", metavar="FILE", help="a Jinja file used in place of the model's own template"
    )
    add_base_cache(options)
    return options


def main(argv: Sequence[str]) -> int:
    """Print the directory as the last line; returns as `exit_code`."""
    arguments = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    return exit_code(lambda: _import(arguments.base, arguments.base_cache, arguments.chat_template))


def _import(base: str, cache: Path, template: str) -> int:
    from pruning.model.source import REMEDY
    from pruning.stages.inputs import base_artifact
    from server.text.tokenizer import Tokenizer

    artifact = base_artifact(base, cache, template)
    try:
        Tokenizer.load(artifact.path).chat([{"role": "user", "content": "Hello"}])
    except (ArtifactError, InvalidRequest) as error:
        print(f"It can be pruned and evaluated, but not serve a chat: {error}\nThen {REMEDY}.", file=sys.stderr)
    print(artifact.path)
    return 0
