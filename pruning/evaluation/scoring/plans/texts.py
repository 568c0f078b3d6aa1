"""Texts that a model is to find likely: what the assistant says in transcripts, and windows of plain text."""

from collections.abc import Sequence

import torch

from pruning.data.draw import Draw, draw
from pruning.data.encoder import Encoder
from pruning.evaluation.scoring import scores as measures
from pruning.evaluation.scoring.plans.plan import Step, Subject, request
from pruning.evaluation.scoring.scorer import Job, Request
from pruning.evaluation.scoring.scores import Scores
from pruning.evaluation.tasks.prompts import Prompts
from pruning.evaluation.tasks.task import Chat, Item, Message, Text, Transcript

PIECE = 256
"""Ids of a long text that are scored in one go."""


class ChatPlan:
    """NLL of what the assistant says, for each of its tokens; each turn is seen after all that came before it."""

    def __init__(self, task: Chat, prompts: Prompts) -> None:
        self.items = [item for item in task.items if isinstance(item, Transcript)]
        self.reply = 0
        self.jobs: list[Job] = [_turns(item.messages, prompts) for item in self.items]

    def run(self, subject: Subject, base: Subject | None, step: Step) -> Scores:
        """Score every transcript."""
        found = subject.scorer.log_likelihoods(self.jobs, step)
        return Scores({measures.NLL: tuple(-torch.cat(job).mean().item() for job in found)})


class TextPlan:
    """NLL of all tokens of a window but the first, as `pruning.evaluation.scoring.perplexity` has it."""

    def __init__(self, task: Text, encoder: Encoder) -> None:
        count = max(task.tokens // task.window, 2)
        self.reply, self.items = 0, [Item(id=str(number)) for number in range(1, count + 1)]
        windows, self.data = draw(Draw(task.source, task.buckets, count, task.window, task.seed), encoder)
        self.jobs: list[Job] = [
            [Request(ids[: end + PIECE], max(end, 1)) for end in range(0, len(ids), PIECE)]
            for ids in (tuple(window) for window in windows.tolist())
        ]

    def run(self, subject: Subject, base: Subject | None, step: Step) -> Scores:
        """Score every window."""
        found = subject.scorer.log_likelihoods(self.jobs, step)
        return Scores({measures.NLL: tuple(-torch.cat(job).mean().item() for job in found)})


def _turns(messages: Sequence[Message], prompts: Prompts) -> Job:
    """One request for each of the assistant's turns."""
    said = [number for number, message in enumerate(messages) if message.role == "assistant"]
    return [request(prompts.before(messages[:n]), prompts.answer(messages[n].content)) for n in said]
