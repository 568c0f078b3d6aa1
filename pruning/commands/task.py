"""`secateur task`: makes tasks of FAQ pages (`from-faq`), and lets a base answer their questions (`answers`)."""

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from importlib.util import find_spec
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec

from pruning.errors import TaskError
from server.command_line import Parser
from server.commands.artifact.base_cache import add_base_cache
from server.storage.files import write_atomically
from server.text.faq import markdown, pod
from server.text.faq.blocks import Block, pairs

Reader = Callable[[str], list[Block]]

TASK = """\
# Made from FAQ pages by `secateur task from-faq`; the pages themselves name their authors and licence.
name = "{name}"
kind = "pairs"
items = "{items}"
chat = true           # prompts are written with the model's own chat template
answer_tokens = 64    # the first tokens of each answer that are scored
choices = 4           # the right answer among three others, scored by PMI

# [gates]             # a result beyond one fails; both are judged by the worse bound of the 95 % interval
# max_nll_ratio = 1.1
# max_accuracy_drop = 0.05
"""


def parser() -> argparse.ArgumentParser:
    """The actions and their options."""
    top = Parser(prog="secateur task", description="Make a task to evaluate models on, or text of it.")
    actions = top.add_subparsers(required=True, metavar="from-faq | answers", dest="action")
    faq = actions.add_parser(
        "from-faq",
        help="question/answer pairs of FAQ pages",
        description="Write question/answer pairs of FAQ pages as a task, which `secateur evaluate` reads. It holds the "
        "pages' text, so their licence applies to it.",
    )
    faq.add_argument(
        "paths", type=Path, nargs="+", metavar="PATH", help=f"a page, or a folder of pages: {', '.join(READERS)}"
    )
    faq.add_argument(
        "--output", type=Path, required=True, metavar="FILE.toml", help="the task to write, with FILE.jsonl beside it"
    )
    answers = actions.add_parser(
        "answers",
        help="a base's own answers to a task's questions, to calibrate and distil on",
        description="Sample the base's own answer to every question that is not held out, and write both as JSON "
        "lines: a source for `[calibration]` and for distillation.",
    )
    answers.add_argument("questions", type=Path, metavar="FILE.jsonl", help='JSON lines with a "question" each')
    answers.add_argument("--base", required=True, help="the model that answers, as in a recipe")
    answers.add_argument("--output", type=Path, required=True, metavar="FILE.jsonl", help="the file to write")
    answers.add_argument("--tokens", type=_count, default=192, help="most tokens of an answer")
    answers.add_argument("--temperature", type=_temperature, default=1.0, help="0 takes the likeliest token")
    answers.add_argument("--seed", type=int, default=0, help="seeds the sampling")
    add_base_cache(answers)
    return top


def _count(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no whole number of 1 or more")
    return int(text)


def _temperature(text: str) -> float:
    """A finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"{text} is no number of 0 or more")
    return value


def main(argv: Sequence[str]) -> int:
    """Write the file and print what is in it; returns 0. Raises a PruningError."""
    arguments = parser().parse_args(argv)
    if arguments.action == "answers":
        print(answer(arguments))
    else:
        print(from_faq(arguments.paths, arguments.output))
    return 0


def answer(arguments: argparse.Namespace) -> str:
    """Write the base's answers to `arguments.output`; returns a line with their number.

    Raises TaskError if the file exists already or cannot be written, DataError without questions.
    """
    from pruning.data.base_answers import Sampling, base_answers, questions_in  # late: brings torch
    from pruning.stages.inputs import base_artifact

    output: Path = arguments.output
    if output.exists():
        raise TaskError(f"{output} is there already: name another --output, or remove it yourself first")
    if output.suffix.lower() not in (".jsonl", ".ndjson"):
        raise TaskError(f"{output}: answers are JSON lines: name it {output.with_suffix('.jsonl')}")
    items = questions_in(arguments.questions)
    base = base_artifact(arguments.base, arguments.base_cache)
    sampling = Sampling(arguments.tokens, arguments.temperature, arguments.seed)
    given = base_answers(base, [item["question"] for item in items], sampling)
    lines = [
        msgspec.json.encode({"question": item["question"], "answer": text}) + b"\n"
        for item, text in zip(items, given, strict=True)
        if text.strip()
    ]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, b"".join(lines))
    except OSError as error:
        raise TaskError(f"{error.filename or output} cannot be written: {error.strerror or error}") from None
    return f"{output}: {len(lines)} answers of {base.lineage.base.name} to {len(items)} questions"


def from_faq(paths: Sequence[Path], output: Path) -> str:
    """Write the task `output`, and its items beside it as .jsonl; returns a line with their number.

    Raises TaskError if a file exists already, a page cannot be read, or no question is found.
    """
    if output.suffix != ".toml":
        better = output / "task.toml" if output.is_dir() else output.with_name(f"{output.stem}.toml")
        raise TaskError(f"{output}: the task is a TOML file: name it {better}")
    items_file = output.with_suffix(".jsonl")
    for file in (output, items_file):
        if file.exists():
            raise TaskError(f"{file} is there already: name another --output, or remove it yourself first")
    files = [file for path in paths for file in pages(path)]
    items = list(_items(files))
    if not items:
        raise TaskError(
            f"no question was found in {len(files)} pages; questions are headings, terms of definition lists, or "
            "paragraphs that are bold as a whole, of which at least half ask something"
        )
    name = re.sub(r"[^\w.-]", "-", output.stem)
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(items_file, b"".join(msgspec.json.encode(item) + b"\n" for item in items))
        write_atomically(output, TASK.format(name=name, items=items_file.name).encode())
    except OSError as error:
        raise TaskError(f"{error.filename or output} cannot be written: {error.strerror or error}") from None
    return f"{output}: {len(items)} question/answer pairs from {len({item['source'] for item in items})} pages"


def pages(path: Path) -> Iterator[Path]:
    """The pages at `path`, sorted by name; raises TaskError if it is missing or no page."""
    if path.is_dir():
        yield from sorted(file for file in path.rglob("*") if file.suffix.lower() in READERS and file.is_file())
    elif not path.exists():
        raise TaskError(f"{path} is not there")
    elif path.suffix.lower() not in READERS:
        raise TaskError(f"{path} is no page: its name must end in one of {', '.join(READERS)}")
    else:
        yield path


def _items(files: Sequence[Path]) -> Iterator[dict[str, Any]]:
    """One item per distinct pair: repeated pairs are dropped."""
    seen = set()
    for file in files:
        for number, pair in enumerate(pairs(blocks(file)), 1):
            if pair not in seen:
                seen.add(pair)
                yield {"id": f"{len(seen):04}-{file.name}-{number}", **pair._asdict(), "source": str(file)}


def blocks(file: Path) -> list[Block]:
    """The blocks of a page; raises TaskError if it cannot be read."""
    return READERS[file.suffix.lower()](_text(file))


def _text(file: Path) -> str:
    """The text of a page, decoded as UTF-8 or else as Latin-1."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise TaskError(f"{file} cannot be read: {error.strerror}") from None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _html(page: str) -> list[Block]:
    """The blocks of an HTML page."""
    if not all(find_spec(name) for name in ("bs4", "lxml")):
        raise TaskError("HTML pages need Beautiful Soup and lxml: run `pip install 'secateur[faq]'`")
    from server.text.faq import html  # late: an extra

    return html.blocks(page)


READERS: dict[str, Reader] = {
    ".html": _html,
    ".htm": _html,
    ".xhtml": _html,
    ".md": markdown.blocks,
    ".markdown": markdown.blocks,
    ".pod": pod.blocks,
}
"""The reader of each format, by suffix."""
