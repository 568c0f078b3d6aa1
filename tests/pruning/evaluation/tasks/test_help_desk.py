"""The help-desk example task: three paraphrases of each question, one of them held out."""

import re
from collections import defaultdict
from typing import get_args

import msgspec

from pruning.data.documents import read
from pruning.evaluation.tasks import task as tasks
from pruning.evaluation.tasks.reading import read_task
from pruning.recipe.options import Stage
from server.commands.__main__ import COMMANDS
from tests.conftest import ROOT

FOLDER = ROOT / "examples/tasks"


def test_three_paraphrases_of_sixty_pairs_one_held_out() -> None:
    lines = (FOLDER / "help-desk.jsonl").read_text().splitlines()
    pairs = [msgspec.json.decode(line, type=tasks.Pair) for line in lines]
    forms = defaultdict(list)
    for pair in pairs:
        forms[pair.answer].append(pair)
    assert len(forms) >= 60
    for same in forms.values():
        assert [pair.held_out for pair in same] == [False, False, True]
    assert len({pair.question for pair in pairs}) == len(pairs)


def test_no_scored_question_is_trained_on() -> None:
    task = read_task(FOLDER / "help-desk.toml")
    assert isinstance(task, tasks.PairsTask)
    scored = {item.question for item in task.items if isinstance(item, tasks.Pair)}
    trained = {text.title for text in read(FOLDER / "help-desk.jsonl", lambda messages: messages[0]["content"])}
    assert len(scored) >= 60
    assert len(trained) == 2 * len(scored)
    assert not scored & trained


def test_files_and_commands_in_answers_exist() -> None:
    text = (FOLDER / "help-desk.jsonl").read_text()
    for name in re.findall(r"[\w/.-]+/[\w.-]+\.(?:toml|json|md)\b", text):
        assert (FOLDER.parents[1] / name).exists(), name
    makefile = (FOLDER.parents[1] / "Makefile").read_text()
    assert set(re.findall(r"`secateur (\w+)", text)) <= COMMANDS.keys()
    for target in re.findall(r"`make (\w+)", text):
        assert f"\n{target}:" in makefile
    stages = next(line for line in text.splitlines() if '"stages-1"' in line)
    for stage in get_args(Stage):
        assert stage.__struct_config__.tag in stages
