"""Tasks of EleutherAI's lm-eval: its prompts and metrics, the server's runner, our intervals.

The scorer computes lm-eval's requests as it does any other task's; lm-eval's metric of a document is the item's value.
lm-eval is an optional extra and imported only for such a task.
"""

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import chdir, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pruning.data.encoder import Encoder
from pruning.errors import TaskError
from pruning.evaluation.scoring import measures
from pruning.evaluation.scoring.measures import Scores
from pruning.evaluation.scoring.plans.plan import LoadedModel, Step, after
from pruning.evaluation.scoring.scorer import Job, ScoreRequest, log_likelihood
from pruning.evaluation.tasks.prompts import Ids
from pruning.evaluation.tasks.task import HarnessTask, Pair

SPACES = " \n\t\r"
WINDOW = 1024
"""Ids per window of a long text, unless the model's context is shorter."""
OURS = {"acc": measures.ACCURACY, "exact_match": measures.EXACT}
"""Our names of lm-eval's metrics."""


class HarnessPlan:
    """lm-eval's requests as token ids; each document is an item.

    Accuracy is lm-eval's `acc`, or its first metric where higher is better. NLL is per token of the right option or the
    target text; a task that generates has none and ranks items by 1 - accuracy.
    """

    def __init__(self, task: HarnessTask, encoder: Encoder, limit: int | None) -> None:
        self._task, self._encoder, self._limit = task, encoder, limit or 2 * WINDOW
        with _explained(task):
            self._made = _make(task, encoder)
        self._documents: dict[int, list[Any]] = defaultdict(list)
        for instance in self._made.instances:
            self._documents[instance.doc_id].append(instance)
        self._generates = self._made.OUTPUT_TYPE == "generate_until"
        self.reply = self._tokens() if self._generates else 0
        with _explained(task):
            self.jobs: list[Job] = [self._job(instances) for instances in self._documents.values()]
            self.items = [self._item(number, instances) for number, instances in self._documents.items()]
        self._check()

    @property
    def digest(self) -> str:
        """SHA-256 of what decides scores besides the requests: reference answers, metrics and lm-eval's version."""
        documents = [instance.doc for instance in self._made.instances]
        parts = [version("lm_eval"), self._made.dump_config(), documents]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()

    def run(self, model: LoadedModel, base: LoadedModel | None, step: Step) -> Scores:
        """Score every document, after a reset of the responses that lm-eval keeps of an earlier model."""
        for instance in self._made.instances:
            instance.resps, instance.filtered_resps = [], {}
        if self._generates:
            found = self._replies(model, step)
            nll: list[float] = []
        else:
            found, nll = self._likelihoods(model, step)
        with _explained(self._task):
            self._made.apply_filters()
            values = self._metrics()
        if nll:
            values[measures.NLL] = tuple(nll)
        elif measures.ACCURACY in values:
            values[measures.ERROR] = tuple(1 - value for value in values[measures.ACCURACY])
        else:
            metrics = ", ".join(self._made.aggregation())
            raise TaskError(f"{self._task.task} has no metric per document ({metrics}), so no interval can be computed")
        answers = tuple(said for said, _ in found)
        chosen = tuple(number for _, number in found) if self._made.OUTPUT_TYPE == "multiple_choice" else ()
        return Scores(values, answers, chosen=chosen)

    def _replies(self, model: LoadedModel, step: Step) -> list[tuple[str, int]]:
        """Generate greedily for each document, cut at lm-eval's stop strings: text and a placeholder 0."""
        prompts = [job[0].ids for job in self.jobs]
        texts = []
        replies = model.scorer.replies(prompts, self.reply, model.stop_ids, step)
        for (instance, *_), ids in zip(self._documents.values(), replies, strict=True):
            text = self._encoder.decode(ids)
            for stop in _stops(instance.args[1]):
                text = text.split(stop)[0] if stop else text
            instance.resps = [text] * (instance.repeats or 1)
            texts.append((text, 0))
        return texts

    def _likelihoods(self, model: LoadedModel, step: Step) -> tuple[list[tuple[str, int]], list[float]]:
        """Score all requests: the most likely option of each document with its index, and the NLL of the right ones.

        The NLLs are empty unless every document has exactly one right option.
        """
        values: list[list[tuple[Tensor, bool]]] = [[(torch.empty(0), False)] * len(job) for job in self.jobs]
        for job, number, logits in model.scorer.logits(self.jobs):
            wanted = self.jobs[job][number].target
            greedy = bool((logits.argmax(dim=-1) == torch.tensor(wanted)).all())
            values[job][number] = log_likelihood(logits, wanted), greedy
            step()
        found, nll = [], []
        for instances, scored in zip(self._documents.values(), values, strict=True):
            if self._made.OUTPUT_TYPE == "loglikelihood_rolling":
                instances[0].resps = [sum(value.sum().item() for value, _ in scored)]
                nll.append(-torch.cat([value for value, _ in scored]).mean().item())
                found.append(("", 0))
                continue
            for instance, (value, greedy) in zip(instances, scored, strict=True):
                instance.resps = [(value.sum().item(), greedy)]
            right = self._right(instances)
            nll += [] if right is None else [-scored[right][0].mean().item()]
            options = instances[: self._options(instances)]
            best = max(range(len(options)), key=lambda n: scored[n][0].sum().item())
            found.append((str(options[best].args[1]).strip(), best))
        return found, nll if len(nll) == len(found) else []

    def _metrics(self) -> dict[str, tuple[float, ...]]:
        """lm-eval's metrics that are one number per document, and the accuracy, by our names."""
        key = next(iter(self._made.instances[0].filtered_resps))
        rows = [
            self._made.process_results(instances[0].doc, [instance.filtered_resps[key] for instance in instances])
            for instances in self._documents.values()
        ]
        single = [name for name in rows[0] if all(isinstance(row.get(name), int | float | bool) for row in rows)]
        better = self._made.higher_is_better()
        values = {OURS.get(name, name): tuple(float(row[name]) for row in rows) for name in single}
        first = next((OURS.get(name, name) for name in single if better.get(name)), None)
        if first is not None and measures.ACCURACY not in values:
            values[measures.ACCURACY] = values[first]
        return values

    def _job(self, instances: Sequence[Any]) -> Job:
        """The requests of one document."""
        if self._generates:
            context = self._ids(instances[0].args[0])
            return [ScoreRequest(context, len(context) - 1)]
        if self._made.OUTPUT_TYPE == "loglikelihood_rolling":
            return list(self._windows(instances[0].args[0]))
        return [self._pair(*instance.args[:2]) for instance in instances]

    def _pair(self, context: str, wanted: str) -> ScoreRequest:
        """Encoded in one piece, as lm-eval does: trailing spaces of the context belong to the target."""
        stripped = context.rstrip(SPACES)
        if not stripped and not self._start():
            return after(self._end(), tuple(self._encoder.ids(context + wanted)))
        before = self._ids(stripped)
        whole = (*self._start(), *self._encoder.ids(context + wanted))
        return after(before, whole[len(before) :])

    def _windows(self, text: str) -> Iterator[ScoreRequest]:
        """A text in windows that do not overlap, each after the last id of the one before."""
        ids = (*(self._start() or self._end()), *self._encoder.ids(text))
        size = min(self._limit - 1, WINDOW)
        for start in range(1, len(ids), size):
            yield ScoreRequest(ids[start - 1 : start + size], 1)

    def _ids(self, text: str) -> Ids:
        """The ids of a context; the end-of-sequence id if it has none."""
        return (*self._start(), *self._encoder.ids(text)) or self._end()

    def _start(self) -> Ids:
        """The ids that the tokenizer puts before a text."""
        return tuple(self._encoder.start)

    def _end(self) -> Ids:
        """The end-of-sequence id, used as the context of a text that has none."""
        return tuple(self._encoder.end)

    def _item(self, number: int, instances: Sequence[Any]) -> Pair:
        """The document as the report shows it: prompt and reference answer."""
        asked = str(instances[0].args[0])
        right = None if self._generates else self._right(instances)
        if right is not None:
            return Pair(id=str(number), question=asked, answer=str(instances[right].args[1]).strip())
        rolling = self._made.OUTPUT_TYPE == "loglikelihood_rolling"
        return Pair(
            id=str(number), question=asked, answer="" if rolling else str(self._made.doc_to_target(instances[0].doc))
        )

    def _options(self, instances: Sequence[Any]) -> int:
        """The number of options; with acc_mutual_info, as many requests without a context follow them."""
        twice = "acc_mutual_info" in getattr(self._made, "_metric_fn_list", {})
        return len(instances) // 2 if twice else len(instances)

    def _right(self, instances: Sequence[Any]) -> int | None:
        """The index of the request with the right option or target text; None unless there is exactly one."""
        if self._made.OUTPUT_TYPE != "multiple_choice":
            return 0 if self._made.OUTPUT_TYPE == "loglikelihood" else None
        if getattr(self._made, "multiple_input", 0) or getattr(self._made, "multiple_target", 0):
            return None
        target = self._made.doc_to_target(instances[0].doc)
        if isinstance(target, str):
            options = self._made.doc_to_choice(instances[0].doc)
            target = options.index(target) if target in options else None
        return target if isinstance(target, int) and 0 <= target < len(instances) else None

    def _tokens(self) -> int:
        """Tokens of a reply: lm-eval's limit, capped by the task's `greedy`."""
        settings = self._made.instances[0].args[1]
        return min(int(settings.get("max_gen_toks", self._task.greedy)), self._task.greedy)

    def _check(self) -> None:
        """Raise TaskError for a gate that this task does not measure, or fewer than two documents."""
        gates, output = self._task.gates, self._made.OUTPUT_TYPE
        if len(self.items) < 2:
            raise TaskError(
                f"lm-eval's task {self._task.task} has {len(self.items)} documents; an interval needs at least 2"
            )
        if gates.max_nll_ratio is not None and self._generates:
            raise TaskError(
                f"gates.max_nll_ratio cannot be judged: {self._task.task} generates ({output}); in a recipe, "
                "set the gate in the files of the tasks that measure it"
            )
        choice = output == "multiple_choice"
        if gates.max_nll_ratio is not None and choice and None in map(self._right, self._documents.values()):
            raise TaskError(f"gates.max_nll_ratio cannot be judged: {self._task.task} has several right options")
        if gates.max_accuracy_drop is not None and output == "loglikelihood_rolling":
            raise TaskError(f"gates.max_accuracy_drop cannot be judged: {self._task.task} is plain text ({output})")


def _make(task: HarnessTask, encoder: Encoder) -> Any:
    """lm-eval's task with its requests built; paths in its YAML are relative to its folder."""
    try:
        from lm_eval.tasks import TaskManager  # late: an optional extra, and slow to import
    except ImportError:
        raise TaskError("a task of kind lm-eval needs the extra: pip install 'secateur[lm-eval]'") from None
    folder = Path(task.folder) if task.folder else None
    if folder is not None and not folder.is_dir():
        raise TaskError(f"folder {folder} does not exist")
    if folder is not None and not task.code:
        _refuse_code(folder)
    with chdir(folder or Path.cwd()):
        manager = TaskManager(include_path=str(folder) if folder else None, include_defaults=folder is None)
        made = manager.load(task.task)["tasks"]
        if list(made) != [task.task]:
            raise TaskError(f"{task.task} is a group of lm-eval's: name one of {', '.join(sorted(made))[:200]}")
        harness: Any = made[task.task]
        if task.shots is not None:
            harness.set_config(key="num_fewshot", value=task.shots)
        harness.set_fewshot_seed(seed=task.seed)
        harness.build_all_requests(
            limit=task.limit,
            apply_chat_template=task.chat,
            chat_template=(lambda turns, *_, **settings: encoder.render(turns, reply=True)) if task.chat else None,
        )
    return harness


def _refuse_code(folder: Path) -> None:
    """Raise TaskError for a YAML file with Python code, which lm-eval would run."""
    for file in [*folder.rglob("*.yaml"), *folder.rglob("*.yml")]:
        if "!function" in (text := file.read_text(encoding="utf-8")) or "\nclass:" in f"\n{text}":
            raise TaskError(f"{file} contains Python code, which lm-eval would run: review it, then set code = true")


def _stops(settings: Any) -> list[str]:
    """The strings that end a reply."""
    found = settings.get("until") or []
    return [found] if isinstance(found, str) else list(found)


@contextmanager
def _explained(task: HarnessTask) -> Iterator[None]:
    """Turn any error of lm-eval into a TaskError of one sentence."""
    try:
        yield
    except TaskError:
        raise
    except Exception as error:
        first = (str(error).splitlines() or [""])[0][:300]
        raise TaskError(f"lm-eval cannot carry out the task {task.task}: {type(error).__name__}: {first}") from error
