"""Perplexity as served: of an artifact on a recipe's texts, by the native runner instead of torch.

The native runner rounds the inputs of integer weights to 8 bits, so its figures differ a little.
"""

import hashlib
import logging
import math
from pathlib import Path
from statistics import fmean

import msgspec

from pruning.evaluation.scoring.measures import NLL
from pruning.evaluation.scoring.planning import carry_out, loaded_model, options_for, plan_task, retokeniser_for
from pruning.evaluation.tasks.task import TextTask
from pruning.recipe.recipe import Evaluation
from server.artifact.checkpoint.lineage import WEIGHTS, Data
from server.artifact.checkpoint.reader import Artifact
from server.engine.native.plan import Refused
from server.engine.runners.choosing import choices, load_runner
from server.errors import SecateurError
from server.storage.files import write_atomically

logger = logging.getLogger(__name__)


def served_perplexities(artifact: Artifact, base: Artifact, evaluation: Evaluation, cache: Path) -> list[float]:
    """The perplexity on each text of `evaluation`, cached; empty where the native runner would not serve `artifact`."""
    chosen = choices(artifact, "auto")
    if chosen[0].value != "native" or evaluation.tokens < 2 * evaluation.window:
        return []
    parts: list[object] = [
        artifact.lineage.files[WEIGHTS],
        artifact.lineage.files["config.json"],
        msgspec.to_builtins(evaluation),
    ]
    parts += [[choice.value for choice in chosen], [data.digest for data in _drawn(artifact)]]
    digest = hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:24]
    path = cache / "evaluations" / f"served-{digest}.json"
    if path.exists():
        return msgspec.json.decode(path.read_bytes(), type=list[float])
    try:
        found = [_served(artifact, base, text) for text in _tasks(evaluation)]
    except (SecateurError, Refused) as error:
        logger.warning("%s cannot be measured as it will be served: %s", artifact.path, error)
        return []
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, msgspec.json.encode(found))
    return found


def _drawn(artifact: Artifact) -> list[Data]:
    """The records of the texts that `artifact` was evaluated on."""
    return [text.data for text in artifact.lineage.evaluation.texts] if artifact.lineage.evaluation else []


def _tasks(evaluation: Evaluation) -> list[TextTask]:
    """A task with the windows of each text."""
    return [
        TextTask(
            name=text.name or "text",
            source=text.source,
            buckets=text.buckets,
            tokens=evaluation.tokens,
            window=evaluation.window,
            seed=evaluation.seed,
        )
        for text in evaluation.every
    ]


def _served(artifact: Artifact, base: Artifact, task: TextTask) -> float:
    """The perplexity on one text, per token of the base's vocabulary."""
    plan, retokeniser = plan_task(task, base), retokeniser_for(base, artifact)
    runner = load_runner(artifact, "native", options_for(plan, retokeniser))
    scores = carry_out(plan, loaded_model(runner, artifact, plan, retokeniser), None, "evaluating as served")
    return math.exp(fmean(scores.measures[NLL]))
