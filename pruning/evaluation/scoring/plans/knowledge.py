"""Answers from a knowledge: retrieval, refusals, support by what is cited, right answers with and without passages."""

import asyncio
from collections.abc import Sequence
from itertools import count

from pruning.errors import TaskError
from pruning.evaluation.scoring import measures, retrieval
from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.scoring.plans.answers import best_of, normalised, options_of
from pruning.evaluation.scoring.plans.plan import LoadedModel, Step, after, jobs_after
from pruning.evaluation.scoring.scorer import Job
from pruning.evaluation.tasks.prompts import Ids, Prompts
from pruning.evaluation.tasks.task import Asked, KnowledgeTask
from server.knowledge import record
from server.knowledge.grounding.citations import citations, supported
from server.knowledge.grounding.grounding import Grounding, Searchable
from server.knowledge.grounding.quotations import quoted_only
from server.knowledge.grounding.quoting import fitting, with_passages
from server.knowledge.passages import Passage
from server.text.grammar.compiler import GrammarCompiler
from server.text.grammar.matcher import CompiledGrammar


class KnowledgePlan:
    """Searches once, then has each model choose and word answers with passages and without.

    A choice is by PMI as in `PairsPlan`, its prior after an empty question without passages. A refused question is a
    wrong choice and contains nothing; a stored answer that is given verbatim is every model's reply.
    """

    def __init__(self, task: KnowledgeTask, prompts: Prompts, grammars: GrammarCompiler) -> None:
        self._task, self._prompts = task, prompts
        knowledge = retrieval.opened(task)
        self.digest = record.sha256(record.encoded(knowledge.manifest))
        found = retrieval.retrieval(task, knowledge)
        self.items, self._groundings, self._searched = found
        self.reply = task.greedy
        self._passages = [self._fitting(grounding) for grounding in self._groundings]
        self._constraints = self._quotations(knowledge, grammars)
        everything = [item for item in task.items if isinstance(item, Asked)]
        phrases = retrieval.key_phrases(everything)
        self._phrases = [phrases[item.id] for item in self.items]
        texts = sorted({item.answer for item in everything})
        self._options = [options_of(item, texts, task) for item in self.items]
        used = sorted({text for options in self._options for text in options})
        self._answers = {text: prompts.answer(text)[: task.answer_tokens] for text in used}
        self._alone = [prompts.question(item.question) for item in self.items]
        self._with = [
            prompts.question(with_passages(item.question, passages)) if passages else alone
            for item, passages, alone in zip(self.items, self._passages, self._alone, strict=True)
        ]
        self.jobs: list[Job] = [
            [after(context, self._answers[text]) for context in (own, alone) for text in options]
            for own, alone, options in zip(self._with, self._alone, self._options, strict=True)
        ]
        self.jobs += jobs_after(prompts.question(""), list(self._answers.values()))

    def run(self, model: LoadedModel, base: LoadedModel | None, step: Step) -> Scores:
        """Score every item; what was found is the same for every model."""
        values, chosen = self._choices(model, step)
        third = _every(3, step)
        alone = self._said(model, self._alone, third)
        free = self._given(self._said(model, self._with, third))
        said = self._said(model, self._with, third, self._constraints)
        pairs = zip(said, self._constraints, strict=True)
        quoted = self._given([text if constraint else "" for text, constraint in pairs])  # the server refuses these
        values |= {
            measures.CONTAINED: self._contained(free),
            measures.CONTAINED_QUOTED: self._contained(quoted),
            measures.CONTAINED_ALONE: self._contained(alone),
            measures.SUPPORTED: self._supported(free),
            measures.SUPPORTED_QUOTED: self._supported(quoted),
        }
        return Scores(values | self._searched, tuple(free), chosen=chosen)

    def _choices(self, model: LoadedModel, step: Step) -> tuple[dict[str, tuple[float, ...]], tuple[int, ...]]:
        """NLL and accuracy, and the option that each item chose with passages."""
        found = model.scorer.log_likelihoods(self.jobs, step)
        prior = [value.sum().item() for job in found[len(self.items) :] for value in job]
        priors = dict(zip(self._answers, prior, strict=True))
        nll, right, right_alone, chosen = [], [], [], []
        for job, options, grounding in zip(found, self._options, self._groundings, strict=False):
            gains = [value.sum().item() - priors[text] for value, text in zip(job, options * 2, strict=True)]
            own, alone = best_of(gains[: len(options)]), best_of(gains[len(options) :])
            nll.append(-job[0].mean().item())
            right.append(float(own == 0 and grounding.kind != "refused"))
            right_alone.append(float(alone == 0))
            chosen.append(own)
        values = {
            measures.NLL: tuple(nll),
            measures.ACCURACY: tuple(right),
            measures.ACCURACY_ALONE: tuple(right_alone),
        }
        return values, tuple(chosen)

    def _said(
        self, model: LoadedModel, prompts: Sequence[Ids], step: Step, constraints: Sequence[CompiledGrammar | None] = ()
    ) -> list[str]:
        """The greedy reply to each prompt."""
        replies = model.scorer.replies(prompts, self._task.greedy, model.stop_ids, step, constraints)
        return [self._prompts.decode(reply) for reply in replies]

    def _given(self, said: Sequence[str]) -> list[str]:
        """What a visitor reads: the stored answer if it is given verbatim, nothing if refused, else what was said."""
        written = [
            None if found.kind == "passages" else found.found[0].passage.text if found.kind == "verbatim" else ""
            for found in self._groundings
        ]
        return [text if answer is None else answer for text, answer in zip(said, written, strict=True)]

    def _contained(self, replies: Sequence[str]) -> tuple[float, ...]:
        """Whether each reply contains its item's key phrase, whole words in a row."""
        pairs = zip(replies, self._phrases, strict=True)
        return tuple(float(f" {phrase} " in f" {normalised(text)} ") for text, phrase in pairs)

    def _supported(self, replies: Sequence[str]) -> tuple[float, ...]:
        """The share of words that cited passages support, of each reply that is no refusal; 0 where all are."""
        shares = []
        for text, found, passages in zip(replies, self._groundings, self._passages, strict=True):
            if found.kind == "refused":
                continue
            cited = [one.passage for one in citations(text, passages)]
            shares.append(1.0 if found.kind == "verbatim" else supported(text, cited))
        return tuple(shares) or (0.0,)

    def _fitting(self, found: Grounding) -> list[Passage]:
        """The passages that are quoted to the model; none if the question is refused."""
        passages = [] if found.kind == "refused" else [one.passage for one in found.found]
        return fitting(passages, self._task.knowledge_tokens, self._prompts.count)

    def _quotations(self, knowledge: Searchable, grammars: GrammarCompiler) -> list[CompiledGrammar | None]:
        """What each reply may be where `answers = "quoted"`; None without passages.

        Raises TaskError for a tokenizer that cannot be constrained.
        """
        if failure := grammars.unsupported():
            raise TaskError(f"this model cannot reply in quotations: its tokenizer cannot be constrained: {failure}")
        pairs = zip(self._groundings, self._passages, strict=True)
        spells = self._prompts.spells_special
        wanted = [quoted_only(knowledge, found.query, passages, spells) for found, passages in pairs]
        return [asyncio.run(grammars.compile(grammar)) if grammar else None for grammar in wanted]


def _every(number: int, step: Step) -> Step:
    """Calls `step` at every `number`-th call: an item's three replies are one unit of work."""
    calls = count(1)

    def called() -> None:
        if next(calls) % number == 0:
            step()

    return called
