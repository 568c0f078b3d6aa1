"""Texts whose likelihood is scored: the assistant's turns in transcripts, and windows of plain text."""

from collections.abc import Sequence

import torch

from pruning.data.draw import Draw, draw
from pruning.data.encoder import Encoder
from pruning.evaluation.scoring import measures
from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.scoring.plans.plan import LoadedModel, Step, after
from pruning.evaluation.scoring.scorer import Job, ScoreRequest
from pruning.evaluation.tasks.prompts import Prompts
from pruning.evaluation.tasks.task import ChatTask, Item, Message, TextTask, Transcript

PIECE = 256
"""Ids of a long text that are scored per request; bounds the memory of the logits."""


class ChatPlan:
    """NLL per token of the assistant's turns, each after all turns before it."""

    def __init__(self, task: ChatTask, prompts: Prompts) -> None:
        self.items = [item for item in task.items if isinstance(item, Transcript)]
        self.reply = 0
        self.jobs: list[Job] = [_turns(item.messages, prompts) for item in self.items]

    def run(self, model: LoadedModel, base: LoadedModel | None, step: Step) -> Scores:
        """Score every transcript."""
        return _mean_nll(model, self.jobs, step)


class TextPlan:
    """NLL of all tokens of a window but the first, as in `pruning.evaluation.scoring.perplexity`."""

    def __init__(self, task: TextTask, encoder: Encoder) -> None:
        count = max(task.tokens // task.window, 2)
        self.reply, self.items = 0, [Item(id=str(number)) for number in range(1, count + 1)]
        wanted = Draw(task.source, task.buckets, count, task.window, task.seed, task.contiguous)
        windows, _ = draw(wanted, encoder)
        self.jobs: list[Job] = [
            [ScoreRequest(ids[: end + PIECE], max(end, 1)) for end in range(0, len(ids), PIECE)]
            for ids in (tuple(window) for window in windows.tolist())
        ]

    def run(self, model: LoadedModel, base: LoadedModel | None, step: Step) -> Scores:
        """Score every window."""
        return _mean_nll(model, self.jobs, step)


def _mean_nll(model: LoadedModel, jobs: Sequence[Job], step: Step) -> Scores:
    """The mean NLL over all scored tokens of each job."""
    found = model.scorer.log_likelihoods(jobs, step)
    return Scores({measures.NLL: tuple(-torch.cat(job).mean().item() for job in found)})


def _turns(messages: Sequence[Message], prompts: Prompts) -> Job:
    """One request for each of the assistant's turns."""
    said = [number for number, message in enumerate(messages) if message.role == "assistant"]
    return [after(prompts.conversation(messages[:n]), prompts.answer(messages[n].content)) for n in said]
