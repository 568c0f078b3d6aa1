"""Scores a model in memory through the runner of transformers."""

from typing import Any

from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.scoring.planning import carry_out, loaded_model, options_for, plan_task
from pruning.evaluation.scoring.plans.plan import LoadedModel, ScoringPlan
from pruning.evaluation.tasks.task import Task
from server.artifact.checkpoint.reader import Artifact
from server.engine.runners.transformers_runner import TransformersRunner


def scored_by(model: Any, artifact: Artifact, plan: ScoringPlan) -> LoadedModel:
    """`model`, loaded in a runner that keeps it, with the tokenizer of `artifact`."""
    options = options_for(plan)
    return loaded_model(TransformersRunner(model, slots=options.slots, context=options.context), artifact, plan)


def score(model: Any, artifact: Artifact, task: Task) -> Scores:
    """The scores of `model` on `task`; a behaviour task compares it with itself."""
    plan = plan_task(task, artifact)
    return carry_out(plan, scored_by(model, artifact, plan), None, "scoring")
