"""Questions with answers: how likely the wanted answer is, and whether a model prefers it to others."""

import random
import re
from collections.abc import Sequence

from torch import Tensor

from pruning.evaluation.scoring import scores as measures
from pruning.evaluation.scoring.plans.plan import Step, Subject, alone, request
from pruning.evaluation.scoring.scorer import Job
from pruning.evaluation.scoring.scores import Scores
from pruning.evaluation.tasks.prompts import Prompts
from pruning.evaluation.tasks.task import Choice, Pair, Pairs, Question


class PairsPlan:
    """NLL of the answer for each of its tokens; four-choice by PMI; exact and contained greedy answers.

    PMI is log p(answer | question) - log p(answer), the latter after the same prompt with an empty question
    (domain-conditional PMI, Holtzman et al. 2021, equation 2).
    """

    def __init__(self, task: Pairs, prompts: Prompts) -> None:
        self._task, self._prompts = task, prompts
        self.items = [item for item in task.items if isinstance(item, Pair)]
        self._questions = [prompts.question(item.question) for item in self.items]
        texts = sorted({item.answer for item in self.items})
        self._answers = {text: prompts.answer(text)[: task.answer_tokens] for text in texts}
        self.reply = task.greedy
        self._options = [distractors(item, texts, task) for item in self.items]
        self.jobs: list[Job] = [
            [request(context, self._answers[text]) for text in options]
            for context, options in zip(self._questions, self._options, strict=True)
        ]
        if task.choices:
            self.jobs += alone(prompts.question(""), [self._answers[text] for text in texts])

    def run(self, subject: Subject, base: Subject | None, step: Step) -> Scores:
        """Score every item."""
        found = subject.scorer.log_likelihoods(self.jobs, step)
        asked, alone = found[: len(self.items)], [value for job in found[len(self.items) :] for value in job]
        values = {measures.NLL: tuple(-job[0].mean().item() for job in asked)}
        prior = {text: value.sum().item() for text, value in zip(self._answers, alone, strict=False)}
        chosen: list[int] = []
        if self._task.choices:
            for job, options in zip(asked, self._options, strict=True):
                gains = [value.sum().item() - prior[text] for value, text in zip(job, options, strict=True)]
                chosen.append(_best(gains))
            values[measures.ACCURACY] = tuple(float(choice == 0) for choice in chosen)
        if not self._task.greedy:
            answers = [options[choice] for options, choice in zip(self._options, chosen, strict=False)]
            return Scores(values, tuple(answers), chosen=tuple(chosen))
        replies = subject.scorer.replies(self._questions, self._task.greedy, subject.stop_ids, step)
        said = [self._prompts.text(reply) for reply in replies]
        pairs = [(plain(text), plain(item.answer)) for text, item in zip(said, self.items, strict=True)]
        values[measures.EXACT] = tuple(float(text == wanted) for text, wanted in pairs)
        values[measures.CONTAINED] = tuple(float(wanted in text) for text, wanted in pairs)
        return Scores(values, tuple(said), tuple(replies), tuple(chosen))


class ChoicePlan:
    """Accuracy of the chosen option and NLL of the right one, for each of its tokens."""

    def __init__(self, task: Choice, prompts: Prompts) -> None:
        self._task = task
        self.items = [item for item in task.items if isinstance(item, Question)]
        self.reply = 0
        self._options = [[prompts.answer(text) for text in item.options] for item in self.items]
        contexts = [prompts.question(item.question) for item in self.items]
        self.jobs: list[Job] = [
            [request(context, option) for option in options]
            for context, options in zip(contexts, self._options, strict=True)
        ]
        self._distinct = sorted({option for options in self._options for option in options})
        if task.by == "pmi":
            self.jobs += alone(prompts.question(""), self._distinct)

    def run(self, subject: Subject, base: Subject | None, step: Step) -> Scores:
        """Score every item."""
        found = subject.scorer.log_likelihoods(self.jobs, step)
        asked, alone = found[: len(self.items)], [value for job in found[len(self.items) :] for value in job]
        prior = {ids: value.sum().item() for ids, value in zip(self._distinct, alone, strict=False)}
        nll, chosen = [], []
        for item, options, job in zip(self.items, self._options, asked, strict=True):
            nll.append(-job[item.answer].mean().item())
            chosen.append(_best([self._gain(value, prior.get(ids)) for value, ids in zip(job, options, strict=True)]))
        right = tuple(float(item.answer == choice) for item, choice in zip(self.items, chosen, strict=True))
        answers = tuple(item.options[choice] for item, choice in zip(self.items, chosen, strict=True))
        return Scores({measures.NLL: tuple(nll), measures.ACCURACY: right}, answers, chosen=tuple(chosen))

    def _gain(self, value: Tensor, prior: float | None) -> float:
        """What an option is chosen by."""
        if self._task.by == "mean":
            return value.mean().item()
        return value.sum().item() - (prior or 0)


def distractors(item: Pair, answers: Sequence[str], task: Pairs) -> list[str]:
    """The right answer and, after it, those that it is chosen from: drawn by the item's id, whatever else is scored."""
    others = [text for text in answers if text != item.answer]
    return [item.answer, *random.Random(f"{task.seed}, {item.id}").sample(others, max(task.choices - 1, 0))]


def plain(text: str) -> str:
    """`text` in small letters, without punctuation, as words with one space between them."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _best(gains: Sequence[float]) -> int:
    """The index of the highest gain; in a tie the last, so that the right option, which stands first, wins none."""
    return max(range(len(gains)), key=lambda index: (gains[index], index))
