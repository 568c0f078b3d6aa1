"""Plans a task before any model is loaded, then carries the plan out on the runner that will serve the model."""

from pruning.data.encoder import Encoder
from pruning.data.retokenise import Retokeniser
from pruning.errors import TaskError
from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.scoring.plans.answers import ChoicePlan, PairsPlan
from pruning.evaluation.scoring.plans.behaviour import BehaviourPlan
from pruning.evaluation.scoring.plans.harness import HarnessPlan
from pruning.evaluation.scoring.plans.knowledge import KnowledgePlan
from pruning.evaluation.scoring.plans.plan import (
    LoadedModel,
    ScoringPlan,
    TokenCount,
    check_plan,
    context_needed,
    count_steps,
)
from pruning.evaluation.scoring.plans.texts import ChatPlan, TextPlan
from pruning.evaluation.scoring.pruned_vocabulary import PrunedVocabularyScorer
from pruning.evaluation.scoring.scorer import Scorer, runner_options
from pruning.evaluation.tasks.prompts import Prompts
from pruning.evaluation.tasks.task import (
    BehaviourTask,
    ChatTask,
    ChoiceTask,
    HarnessTask,
    KnowledgeTask,
    PairsTask,
    Task,
    TextTask,
)
from pruning.model.settings import positions
from server.artifact.checkpoint.reader import Artifact
from server.engine.runners import Options, Scoring
from server.progress import Progress
from server.text import tokenizer_files
from server.text.grammar.compiler import GrammarCompiler


def retokeniser_for(base: Artifact, artifact: Artifact) -> Retokeniser | None:
    """How to retokenise the base's ids in the tokens of `artifact`; None if both have the same tokenizer."""
    before, after = (tokenizer_files.read(one.path).library for one in (base, artifact))
    return None if before.to_str() == after.to_str() else Retokeniser(before, after)


def refuse_pruned_vocabulary(task: Task) -> None:
    """Raise TaskError for a kind of task that cannot score an artifact with a pruned vocabulary."""
    if isinstance(task, BehaviourTask | KnowledgeTask | HarnessTask):
        raise TaskError(
            f"the task {task.name} compares distributions, prompts or quotations token by token, but the "
            "artifact's vocabulary was pruned, so its tokens are not the base's: use a task "
            "of kind pairs, choice, chat or text"
        )


def plan_task(task: Task, artifact: Artifact) -> ScoringPlan:
    """What a model with the tokenizer of `artifact` must compute; raises TaskError for a text beyond its context."""
    encoder = Encoder(artifact)
    limit = positions(artifact.config)
    plan: ScoringPlan
    if isinstance(task, HarnessTask):
        plan = HarnessPlan(task, encoder, limit)
    elif isinstance(task, KnowledgeTask):
        plan = KnowledgePlan(task, Prompts(encoder, task), GrammarCompiler(tokenizer_files.read(artifact.path)))
    else:
        plan = _plan(task, encoder)
    check_plan(plan, limit)
    return plan


def options_for(plan: ScoringPlan, retokeniser: Retokeniser | None = None) -> Options:
    """The options of a runner that can carry out `plan`, with its ids converted by `retokeniser`."""
    return runner_options(context_needed(plan, token_count(retokeniser)))


def loaded_model(
    runner: Scoring, artifact: Artifact, plan: ScoringPlan, retokeniser: Retokeniser | None = None
) -> LoadedModel:
    """The model of `artifact`, loaded in a `runner` that was made with `options_for(plan, retokeniser)`."""
    context = context_needed(plan, token_count(retokeniser))
    scorer = PrunedVocabularyScorer(runner, context, retokeniser) if retokeniser else Scorer(runner, context)
    return LoadedModel(scorer, tokenizer_files.read(artifact.path).stop_ids)


def token_count(retokeniser: Retokeniser | None) -> TokenCount:
    """Counts the ids of a text after `retokeniser`."""
    return (lambda ids: len(retokeniser.ids(ids))) if retokeniser else len


def carry_out(plan: ScoringPlan, model: LoadedModel, base: LoadedModel | None, what: str) -> Scores:
    """Score `model` by `plan`, with a progress bar labelled `what`; behaviour compares with `base`, or with itself."""
    with Progress(what, count_steps(plan)) as progress:
        return plan.run(model, base, progress.step)


def _plan(task: PairsTask | ChoiceTask | ChatTask | TextTask | BehaviourTask, encoder: Encoder) -> ScoringPlan:
    """The plan of the task's kind."""
    if isinstance(task, TextTask):
        return TextPlan(task, encoder)
    prompts = Prompts(encoder, task)
    if isinstance(task, PairsTask):
        return PairsPlan(task, prompts)
    if isinstance(task, ChoiceTask):
        return ChoicePlan(task, prompts)
    if isinstance(task, ChatTask):
        return ChatPlan(task, prompts)
    return BehaviourPlan(task, prompts)
