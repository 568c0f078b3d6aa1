"""What a model scores on a task: the plan is made first, then carried out by the runner that will serve the model."""

from pruning.data.encoder import Encoder
from pruning.data.retokenise import Retokeniser
from pruning.errors import TaskError
from pruning.evaluation.scoring.plans.answers import ChoicePlan, PairsPlan
from pruning.evaluation.scoring.plans.behaviour import BehaviourPlan
from pruning.evaluation.scoring.plans.harness import HarnessPlan
from pruning.evaluation.scoring.plans.plan import Length, Plan, Subject, check, context, steps
from pruning.evaluation.scoring.plans.texts import ChatPlan, TextPlan
from pruning.evaluation.scoring.respelt import RespeltScorer
from pruning.evaluation.scoring.scorer import Scorer, options
from pruning.evaluation.scoring.scores import Scores
from pruning.evaluation.tasks.prompts import Prompts
from pruning.evaluation.tasks.task import Behaviour, Chat, Choice, Harness, Pairs, Task, Text
from pruning.model.settings import positions
from pruning.progress import Progress
from server.artifact.checkpoint.reader import Artifact
from server.engine.runners import Options, Scoring
from server.text import tokenizer_files


def spelling(base: Artifact, artifact: Artifact) -> Retokeniser | None:
    """How the base's ids are written in those of `artifact`; None where both have the same tokenizer."""
    before, after = (tokenizer_files.read(one.path).library for one in (base, artifact))
    return None if before.to_str() == after.to_str() else Retokeniser(before, after)


def refuse_fewer_tokens(task: Task) -> None:
    """Raise TaskError for a task that cannot be carried out where the artifact has fewer tokens than its base."""
    if isinstance(task, Behaviour | Harness):
        raise TaskError(
            f"the task {task.name} compares distributions or prompts token by token, but the artifact's vocabulary was "
            "pruned, so its tokens are not the base's: use a task of kind pairs, choice, chat or text"
        )


def make(task: Task, artifact: Artifact) -> Plan:
    """What has to be computed for `task`; raises TaskError for what does not fit the model's context."""
    encoder = Encoder(artifact)
    limit = positions(artifact.config)
    plan = HarnessPlan(task, encoder, limit) if isinstance(task, Harness) else _plan(task, encoder)
    check(plan, limit)
    return plan


def needs(plan: Plan, spelt: Retokeniser | None = None) -> Options:
    """What a runner has to be made for to carry out `plan`, whose ids may be spelt in others."""
    return options(context(plan, length(spelt)))


def subject(runner: Scoring, artifact: Artifact, plan: Plan, spelt: Retokeniser | None = None) -> Subject:
    """The model of `artifact` in a `runner` that was made for what `plan` needs."""
    longest = context(plan, length(spelt))
    scorer = RespeltScorer(runner, longest, spelt) if spelt else Scorer(runner, longest)
    return Subject(scorer, tokenizer_files.read(artifact.path).stop_ids)


def length(spelt: Retokeniser | None) -> Length:
    """How many ids a text has, once it is spelt."""
    return (lambda ids: len(spelt.ids(ids))) if spelt else len


def carry_out(plan: Plan, subject: Subject, base: Subject | None, what: str) -> Scores:
    """Compute `plan`, with a progress bar; without a base, behaviour is compared with itself."""
    with Progress(what, steps(plan)) as progress:
        return plan.run(subject, base, progress.step)


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
