"""`secateur evaluate --skill NAME@REVISION --task FILE`: scores a revision through the server that would serve it.

Each question is a reply of the running server's playground: with the skill's prompt, knowledge and filters, metered to
the skill under the key `draft`.
"""

import argparse
import getpass
import http.client
import json
import logging
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from pruning.errors import GATE_FAILED
from server.commands.ledger.recording import record
from server.commands.skills.opening import named, revisions_of
from server.commands.start.talk import message
from server.config import Config
from server.errors import ConfigError, SecateurError
from server.intervals import mean
from server.metering.audit.chain import Event
from server.models.reload import skills_folder
from server.progress import Progress
from server.skills.revisions.evaluations import Evaluation, Verdict
from server.skills.revisions.store import Revision, Revisions
from server.skills.revisions.text import parse
from server.skills.skill import Skill

KEY = "SECATEUR_ADMIN_KEY"
"""The environment variable with a key of `admin_keys`."""
TIMEOUT = 600
MOST_WAITS = 20


class Said(Struct, frozen=True):
    """What a skill replied."""

    text: str
    refused: bool
    tokens: int
    """Prompt and output tokens, as metered."""


def score_skill(arguments: argparse.Namespace) -> int:
    """Ask, score, keep the scores beside the revision, and print them; returns 3 if its gate does not let it pass."""
    from pruning.evaluation.scoring.replies import questions, reply_scores
    from pruning.evaluation.tasks.reading import read_task
    from pruning.evaluation.tasks.task import KnowledgeTask, PairsTask

    logging.getLogger("server").setLevel(logging.WARNING)  # the audit log writes a line of its own
    if arguments.server is None:
        raise ConfigError("--skill needs the settings of the server that has it: --server SERVER.toml")
    task = read_task(arguments.task)
    if not isinstance(task, PairsTask | KnowledgeTask):
        raise ConfigError(f"{arguments.task}: a skill is asked questions: use a task of kind pairs or knowledge")
    with revisions_of(arguments.server) as (config, revisions):
        name, number = named(arguments.skill)
        revision = revisions.get(name, number)
        skill = parse(revision.text, skills_folder(config), name)
        place = arguments.url or f"http://{config.admin_host}:{config.admin_port}"
        asked = questions(task)
        with Progress(f"asking {name}@{revision.number}", len(asked)) as progress:
            said = [ask(place, skill, revision.text, question, progress.step) for question in asked]
        scores = reply_scores(task, [one.text for one in said], [one.refused for one in said])
        model = skill.model or config.model
        made = Evaluation(name, revision.digest, task.name, task.digest, model, getpass.getuser(), scores)
        verdict = keep(config, revisions, revision, made)
    tokens = sum(one.tokens for one in said)
    print("\n".join(table(f"{name}@{revision.number}", made, tokens)))
    if verdict is not None:
        print(f"gate: {'passed' if verdict.passed else 'FAILED'}: {verdict.reason}")
    return GATE_FAILED if verdict is not None and not verdict.passed else 0


def keep(config: Config, revisions: Revisions, revision: Revision, made: Evaluation) -> Verdict | None:
    """Keep the scores, note them in the audit log, and judge the revision by its gate."""
    revisions.evaluations.add(made)
    result = ", ".join(f"{name} {value:.3f}" for name, value in made.means.items())
    what = f"{revision.skill}@{revision.number} on {made.task}"
    record(config.ledger, Event(made.author, "skill.evaluate", what, result=result))
    return revisions.verdict(revision)


def ask(place: str, skill: Skill, text: str, question: str, step: Any) -> Said:
    """The draft's greedy reply to one question; waits while a rate limit refuses it. Raises SecateurError."""
    body = json.dumps({"text": text, "messages": [{"role": "user", "content": question}], "temperature": 0}).encode()
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(KEY, ""):
        headers["Authorization"] = f"Bearer {key}"
    request = urllib.request.Request(f"{place}/admin/skills/{skill.name}/try", body, headers)
    for _ in range(MOST_WAITS):
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT) as answer:
                said = gathered(skill, answer)
        except urllib.error.HTTPError as error:
            if error.code == 429 and (seconds := error.headers.get("Retry-After", "")).isdigit():
                time.sleep(min(int(seconds), 60))
                continue
            raise SecateurError(f"{place} answered {error.code}: {message(error.read(4000))}") from None
        except (OSError, http.client.HTTPException) as error:
            raise SecateurError(
                f"{place} does not answer ({error}): start the server of these settings, or name its admin listener "
                "with --url"
            ) from None
        step()
        return said
    raise SecateurError(f"{place} refused {MOST_WAITS} times since a limit of {skill.name!r} is used up: try later")


def gathered(skill: Skill, lines: Iterator[bytes] | Any) -> Said:
    """The reply in the events of the playground; raises SecateurError for an error event."""
    text, name, tokens = "", "", 0
    for line in lines:
        field, _, value = line.decode().rstrip("\n").partition(": ")
        name = value if field == "event" else name
        if field != "data":
            continue
        data = json.loads(value)
        if name == "error":
            raise SecateurError(f"the reply failed: {data['message']}")
        text += data["text"] if name == "text" else ""
        tokens = data["prompt_tokens"] + data["completion_tokens"] if name == "end" else tokens
    return Said(text, bool(skill.knowledge and skill.refusal) and text.startswith(skill.refusal), tokens)


def table(name: str, made: Evaluation, tokens: int) -> Sequence[str]:
    """The means with their 95 % intervals, as lines of a terminal."""
    items = len(next(iter(made.scores.values())))
    lines = [f"{name} on {made.task}: {items} questions, {tokens} tokens, metered as draft; 95 % bootstrap intervals"]
    for measure, values in made.scores.items():
        found = mean(values, 0)
        lines.append(f"  {measure:<18} {found.value:.3f}  ({found.low:.3f} to {found.high:.3f})")
    return lines
