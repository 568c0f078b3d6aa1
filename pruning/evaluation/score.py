"""`score(model, artifact, task)`: what a loaded model scores on a task, by item, in the transformers runner."""

from typing import Any

import msgspec

from pruning.data import Encoder
from pruning.evaluation.answers import ChoicePlan, PairsPlan
from pruning.evaluation.behaviour import BehaviourPlan
from pruning.evaluation.harness import HarnessPlan
from pruning.evaluation.plan import Plan, Subject, check, context, steps
from pruning.evaluation.prompts import Prompts
from pruning.evaluation.scorer import SLOTS, Scorer
from pruning.evaluation.scores import Scores
from pruning.evaluation.task import Behaviour, Chat, Choice, Harness, Pairs, Task, Text
from pruning.evaluation.texts import ChatPlan, TextPlan
from pruning.progress import Progress
from server.checkpoint.reader import Artifact
from server.engine.runners.transformers_runner import TransformersRunner


def score(model: Any, artifact: Artifact, task: Task, what: str = "scoring") -> Scores:
    """What `model`, as `transformers_runner.load` gave it, scores on `task`; `artifact` has its tokenizer.

    The model belongs to the runner from then on: load another for another task. Behaviour is compared with itself.
    """
    plan = make(task, artifact)
    return carry_out(plan, subject(model, artifact, plan), None, what)


def make(task: Task, artifact: Artifact) -> Plan:
    """What has to be computed for `task`; raises TaskError for what does not fit the model's context."""
    encoder = Encoder(artifact)
    limit = artifact.config.get("max_position_embeddings")
    plan = HarnessPlan(task, encoder, limit) if isinstance(task, Harness) else _plan(task, encoder)
    check(plan, limit)
    return plan


def subject(model: Any, artifact: Artifact, plan: Plan) -> Subject:
    """`model` in the server's transformers runner, with the context that `plan` needs."""
    longest = context(plan)
    return Subject(Scorer(TransformersRunner(model, slots=SLOTS, context=longest), longest), stop_ids(artifact))


def carry_out(plan: Plan, subject: Subject, base: Subject | None, what: str) -> Scores:
    """Compute `plan`, with a progress bar."""
    with Progress(what, steps(plan)) as progress:
        return plan.run(subject, base, progress.step)


def stop_ids(artifact: Artifact) -> frozenset[int]:
    """The ids that end a reply, as the model's own files name them."""
    found: list[object] = []
    generation = artifact.path / "generation_config.json"
    settings = msgspec.json.decode(generation.read_bytes(), type=dict[str, Any]) if generation.exists() else {}
    for values in (settings, artifact.config):
        end = values.get("eos_token_id")
        found += end if isinstance(end, list) else [end]
    return frozenset(id for id in found if isinstance(id, int))


def _plan(task: Pairs | Choice | Chat | Text | Behaviour, encoder: Encoder) -> Plan:
    """The plan for the task's kind."""
    if isinstance(task, Text):
        return TextPlan(task, encoder)
    prompts = Prompts(encoder, task)
    if isinstance(task, Pairs):
        return PairsPlan(task, prompts)
    if isinstance(task, Choice):
        return ChoicePlan(task, prompts)
    if isinstance(task, Chat):
        return ChatPlan(task, prompts)
    return BehaviourPlan(task, prompts)
