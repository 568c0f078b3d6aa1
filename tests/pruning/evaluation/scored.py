"""A model in memory scored on a task, through transformers."""

from typing import Any

from pruning.evaluation.scoring.plans.plan import Plan, Subject
from pruning.evaluation.scoring.score import carry_out, make, needs, subject
from pruning.evaluation.scoring.scores import Scores
from pruning.evaluation.tasks.task import Task
from server.artifact.checkpoint.reader import Artifact
from server.engine.runners.transformers_runner import TransformersRunner


def scored_by(model: Any, artifact: Artifact, plan: Plan) -> Subject:
    """`model`, which belongs to the runner from then on, with the tokenizer of `artifact`."""
    options = needs(plan)
    return subject(TransformersRunner(model, slots=options.slots, context=options.context), artifact, plan)


def score(model: Any, artifact: Artifact, task: Task) -> Scores:
    """What `model` scores on `task`; behaviour is compared with itself."""
    plan = make(task, artifact)
    return carry_out(plan, scored_by(model, artifact, plan), None, "scoring")
