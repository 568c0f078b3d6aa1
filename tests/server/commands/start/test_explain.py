"""`secateur explain`: every code of the sources, and no other."""

import json

import pytest

from server.commands.__main__ import main
from server.commands.start.codes import CODES
from tests.docs.reference.errors import codes


def test_every_code_of_the_sources_is_explained() -> None:
    assert list(CODES) == sorted({code.code for code in codes()})


def test_a_code_is_explained_and_a_misspelt_one_guessed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "origin_not_allowed"]) == 0
    assert "Add it exactly as browsers send it" in capsys.readouterr().out
    assert main(["explain", "origin_not_alowed"]) == 2
    assert "did you mean `origin_not_allowed`?" in capsys.readouterr().err
    assert main(["explain"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(CODES)
    assert main(["explain", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {name: advice._asdict() for name, advice in CODES.items()}
    assert main(["explain", "body_too_large", "--json"]) == 0
    assert [*json.loads(capsys.readouterr().out)] == ["body_too_large"]
