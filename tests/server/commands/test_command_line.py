"""Misspelt options and actions of commands: the nearest one is named, on every Python."""

import pytest

from server.command_line import Parser


@pytest.fixture
def parser() -> Parser:
    top = Parser(prog="it")
    actions = top.add_subparsers(required=True, metavar="create | list")
    actions.add_parser("create").add_argument("--tokens-per-day", type=int)
    actions.add_parser("list").add_argument("--format", choices=["table", "jsonl"])
    return top


@pytest.mark.parametrize(
    ("words", "guess"),
    [
        (["creat"], "; did you mean create?"),
        (["create", "--token-per-dya=5"], "; did you mean --tokens-per-day?"),
        (["list", "--format", "json"], "; did you mean jsonl?"),
        (["list", "--fromat", "table", "--colour"], "; did you mean --format?"),
        (["xyzzy"], ""),
        (["list", "table"], ""),
        (["create", "--tokens-per-day", "many"], ""),
    ],
)
def test_the_nearest_name_is_guessed(
    parser: Parser, words: list[str], guess: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        parser.parse_args(words)
    assert left.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("it")
    assert said.endswith(guess)
    assert ("did you mean" in said) == bool(guess)
