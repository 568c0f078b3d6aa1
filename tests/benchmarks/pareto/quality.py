"""Scores a candidate on the held-out texts and the task, by the runner that serves it or by llama.cpp."""

from collections.abc import Callable, Sequence
from typing import Protocol

from torch import Tensor

from pruning.data.encoder import Encoder
from pruning.evaluation.scoring import measures
from pruning.evaluation.scoring.planning import plan_task, retokeniser_for
from pruning.evaluation.scoring.plans.plan import LoadedModel, context_needed
from pruning.evaluation.scoring.pruned_vocabulary import PrunedVocabularyScorer
from pruning.evaluation.scoring.scorer import Job, Scorer, ScoreRequest, runner_options
from pruning.evaluation.tasks.task import PairsTask
from server.artifact.checkpoint.reader import Artifact
from server.engine.runners.choosing import load_runner
from server.progress import Progress
from tests.benchmarks.pareto.results import Quality

Windows = dict[str, list[str]]
"""The windows of each held-out text."""


class Scores(Protocol):
    """What both scorers do."""

    def log_likelihoods(self, jobs: Sequence[Job], step: Callable[[], None]) -> list[list[Tensor]]:
        """Natural log-probabilities of the scored ids of each request."""
        ...


def requests(windows: Windows, encoder: Encoder) -> dict[str, list[ScoreRequest]]:
    """Each window's ids after a start, all of them scored: every model reads the same characters."""
    start = tuple(encoder.start or encoder.end)
    return {
        name: [ScoreRequest((*start, *encoder.ids(window)), len(start)) for window in each]
        for name, each in windows.items()
    }


def tokens(windows: Windows, base: Artifact) -> dict[str, int]:
    """Tokens of each text in the base's vocabulary."""
    found = requests(windows, Encoder(base))
    return {name: sum(len(request.target) for request in each) for name, each in found.items()}


def by_runner(artifact: Artifact, base: Artifact, windows: Windows, task: PairsTask) -> Quality:
    """The quality of an artifact, in its own tokens, by the runner that serves it."""
    asked = requests(windows, Encoder(artifact))
    plan, retokeniser = plan_task(task, base), retokeniser_for(base, artifact)
    count = (lambda ids: len(retokeniser.ids(ids))) if retokeniser else len
    longest = max(len(request.ids) for each in asked.values() for request in each)
    context = max(longest, context_needed(plan, count))
    runner = load_runner(artifact, "auto", runner_options(context))
    nats = _nats(Scorer(runner, context), asked, artifact.path.name)
    scorer = PrunedVocabularyScorer(runner, context, retokeniser) if retokeniser else Scorer(runner, context)
    return _quality(nats, scorer, base, task, runner.choices[0].value)


def by_llama(scorer: Scores, base: Artifact, windows: Windows, task: PairsTask, name: str) -> Quality:
    """The quality of a GGUF file in llama.cpp, on the same ids as the base."""
    nats = _nats(scorer, requests(windows, Encoder(base)), name)
    return _quality(nats, scorer, base, task, "llama.cpp")


def _nats(scorer: Scores, asked: dict[str, list[ScoreRequest]], what: str) -> dict[str, float]:
    """Nats of each text, summed over its windows."""
    with Progress(f"reading texts with {what}", sum(map(len, asked.values()))) as progress:
        found = {
            name: scorer.log_likelihoods([[request] for request in each], progress.step) for name, each in asked.items()
        }
    return {name: -sum(float(job[0].sum()) for job in jobs) for name, jobs in found.items()}


def _quality(nats: dict[str, float], scorer: Scores, base: Artifact, task: PairsTask, runner: str) -> Quality:
    """The quality with the task's choices."""
    plan = plan_task(task, base)
    with Progress("choosing answers", sum(map(len, plan.jobs))) as progress:
        found = plan.run(LoadedModel(scorer, frozenset()), None, progress.step)  # type: ignore[arg-type]
    right = found.measures[measures.ACCURACY]
    return Quality({name: round(value, 2) for name, value in nats.items()}, sum(right) / len(right), len(right), runner)
