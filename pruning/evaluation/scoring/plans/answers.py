"""Questions with answers: the likelihood of the reference answer, and whether a model prefers it to distractors."""

import random
import re
from collections.abc import Sequence

from torch import Tensor

from pruning.evaluation.scoring import measures
from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.scoring.plans.plan import LoadedModel, Step, after, jobs_after
from pruning.evaluation.scoring.scorer import Job
from pruning.evaluation.tasks.prompts import Prompts
from pruning.evaluation.tasks.task import ChoiceTask, KnowledgeTask, Pair, PairsTask, Question


class PairsPlan:
    """NLL per token of the answer; multiple choice by PMI; exact and contained greedy answers.

    PMI is log p(answer | question) - log p(answer), the latter after the same prompt with an empty question
    (domain-conditional PMI, Holtzman et al. 2021, equation 2).
    """

    def __init__(self, task: PairsTask, prompts: Prompts) -> None:
        self._task, self._prompts = task, prompts
        self.items = [item for item in task.items if isinstance(item, Pair)]
        self._questions = [prompts.question(item.question) for item in self.items]
        texts = sorted({item.answer for item in self.items})
        self._answers = {text: prompts.answer(text)[: task.answer_tokens] for text in texts}
        self.reply = task.greedy
        self._options = [options_of(item, texts, task) for item in self.items]
        self.jobs: list[Job] = [
            [after(context, self._answers[text]) for text in options]
            for context, options in zip(self._questions, self._options, strict=True)
        ]
        if task.choices:
            self.jobs += jobs_after(prompts.question(""), [self._answers[text] for text in texts])

    def run(self, model: LoadedModel, base: LoadedModel | None, step: Step) -> Scores:
        """Score every item."""
        found = model.scorer.log_likelihoods(self.jobs, step)
        conditional, prior = _split(found, len(self.items))
        values = {measures.NLL: tuple(-job[0].mean().item() for job in conditional)}
        priors = {text: value.sum().item() for text, value in zip(self._answers, prior, strict=False)}
        chosen: list[int] = []
        if self._task.choices:
            for job, options in zip(conditional, self._options, strict=True):
                gains = [value.sum().item() - priors[text] for value, text in zip(job, options, strict=True)]
                chosen.append(best_of(gains))
            values[measures.ACCURACY] = tuple(float(choice == 0) for choice in chosen)
        if not self._task.greedy:
            answers = [options[choice] for options, choice in zip(self._options, chosen, strict=False)]
            return Scores(values, tuple(answers), chosen=tuple(chosen))
        replies = model.scorer.replies(self._questions, self._task.greedy, model.stop_ids, step)
        said = [self._prompts.decode(reply) for reply in replies]
        pairs = [
            (normalised(text), [normalised(answer) for answer in item.right])
            for text, item in zip(said, self.items, strict=True)
        ]
        values[measures.EXACT] = tuple(float(text in references) for text, references in pairs)
        values[measures.CONTAINED] = tuple(float(any(one in text for one in references)) for text, references in pairs)
        return Scores(values, tuple(said), tuple(replies), tuple(chosen))


class ChoicePlan:
    """Accuracy of the chosen option, and NLL per token of the right one."""

    def __init__(self, task: ChoiceTask, prompts: Prompts) -> None:
        self._task = task
        self.items = [item for item in task.items if isinstance(item, Question)]
        self.reply = 0
        self._options = [[prompts.answer(text) for text in item.options] for item in self.items]
        contexts = [prompts.question(item.question) for item in self.items]
        self.jobs: list[Job] = [
            [after(context, option) for option in options]
            for context, options in zip(contexts, self._options, strict=True)
        ]
        self._distinct = sorted({option for options in self._options for option in options})
        if task.by == "pmi":
            self.jobs += jobs_after(prompts.question(""), self._distinct)

    def run(self, model: LoadedModel, base: LoadedModel | None, step: Step) -> Scores:
        """Score every item."""
        found = model.scorer.log_likelihoods(self.jobs, step)
        conditional, prior = _split(found, len(self.items))
        priors = {ids: value.sum().item() for ids, value in zip(self._distinct, prior, strict=False)}
        nll, chosen = [], []
        for item, options, job in zip(self.items, self._options, conditional, strict=True):
            nll.append(-job[item.answer].mean().item())
            chosen.append(
                best_of([self._gain(value, priors.get(ids)) for value, ids in zip(job, options, strict=True)])
            )
        right = tuple(float(item.answer == choice) for item, choice in zip(self.items, chosen, strict=True))
        answers = tuple(item.options[choice] for item, choice in zip(self.items, chosen, strict=True))
        return Scores({measures.NLL: tuple(nll), measures.ACCURACY: right}, answers, chosen=tuple(chosen))

    def _gain(self, value: Tensor, prior: float | None) -> float:
        """The figure that ranks an option: the mean of its token log-likelihoods, or their sum less `prior`."""
        if self._task.by == "mean":
            return value.mean().item()
        return value.sum().item() - (prior or 0)


def options_of(item: Pair, answers: Sequence[str], task: PairsTask | KnowledgeTask) -> list[str]:
    """The reference, then its distractors, which no right answer is; the item's id seeds the draw.

    So other items do not change it.
    """
    others = [text for text in answers if text not in item.right]
    return [item.answer, *random.Random(f"{task.seed}, {item.id}").sample(others, max(task.choices - 1, 0))]


def normalised(text: str) -> str:
    """`text` in lower case, without punctuation, with single spaces between words."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _split(found: list[list[Tensor]], items: int) -> tuple[list[list[Tensor]], list[Tensor]]:
    """Split `found`, one list per job: those of the first `items` jobs, and the values of all later jobs, flattened."""
    return found[:items], [value for job in found[items:] for value in job]


def best_of(gains: Sequence[float]) -> int:
    """The index of the highest gain; a tie goes to the last, so that the right option, which is first, wins none."""
    return max(range(len(gains)), key=lambda index: (gains[index], index))
