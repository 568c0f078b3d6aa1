"""Scores equal those from a forward pass per text, without cache, batching or shared prefixes."""

import math
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from pruning.data.draw import Draw, draw
from pruning.data.encoder import Encoder
from pruning.errors import DataError, TaskError
from pruning.evaluation.scoring.perplexity import perplexity
from pruning.evaluation.scoring.planning import carry_out, loaded_model, options_for, plan_task
from pruning.evaluation.tasks import task as tasks
from pruning.stages.context import StageModel
from server.artifact.checkpoint.reader import Artifact
from server.engine.batch import Batch
from server.engine.native import absent
from server.engine.runners.choosing import load_runner
from server.engine.runners.transformers_runner import TransformersRunner
from tests.pruning import tiny
from tests.pruning.evaluation.scored import score, scored_by

Read = Callable[..., tasks.Task]
FAQ = [{"question": f"What is {n} and {n}?", "answer": f"It is {2 * n}, or so{'!' * (n % 7)}"} for n in range(20)]
SYSTEM = "<system>Be brief.<end><user>Hello?<end><assistant>Yes.<end>"


@cache
def own(artifact: Artifact) -> Any:
    """The plain model, loaded once."""
    return tiny.loaded(artifact)


def likelihood(artifact: Artifact, before: str, wanted: str, most: int = 99) -> torch.Tensor:
    """log p of each token of `wanted` after `before`, by the plain model."""
    encoder = Encoder(artifact)
    first, ids = encoder.ids(before), encoder.ids(wanted)[:most]
    with torch.no_grad():
        logits = own(artifact)(input_ids=torch.tensor([first + ids]), use_cache=False).logits[0, :-1]
    every = logits.double().log_softmax(dim=-1)
    return torch.stack([every[place, id] for place, id in enumerate(ids, len(first) - 1)])


@pytest.mark.parametrize("chat", [False, True])
def test_pairs_are_scored_by_the_formulas(artifact: Artifact, task: Read, chat: bool) -> None:
    extra = 'chat = true\nsystem = "Be brief."\nexamples = [{question = "Hello?", answer = "Yes."}]' if chat else ""
    pairs = task(f'name = "faq"\nkind = "pairs"\nanswer_tokens = 12\n{extra}', *FAQ)
    assert isinstance(pairs, tasks.PairsTask)
    found = score(tiny.loaded(artifact), artifact, pairs)

    def asked(question: str) -> str:
        return f"{SYSTEM}<user>{question}<end><assistant>" if chat else f"Question: {question}\nAnswer:"

    space = "" if chat else " "
    for number, item in enumerate(FAQ):
        wanted = likelihood(artifact, asked(item["question"]), space + item["answer"], 12)
        assert found.measures["nll"][number] == pytest.approx(-wanted.mean().item(), rel=1e-5)
        others = [text["answer"] for text in FAQ if text != item]
        assert found.answers[number] in [item["answer"], *others]
    for number in (0, 7):
        options = distractors_of(pairs, number)
        gains = [
            likelihood(artifact, asked(FAQ[number]["question"]), space + text, 12).sum()
            - likelihood(artifact, asked(""), space + text, 12).sum()
            for text in options
        ]
        assert found.answers[number] == options[max(range(4), key=lambda index: gains[index])]
        assert found.measures["accuracy"][number] == (found.answers[number] == FAQ[number]["answer"])


def distractors_of(pairs: tasks.PairsTask, number: int) -> list[str]:
    from pruning.evaluation.scoring.plans.answers import options_of

    item = pairs.items[number]
    assert isinstance(item, tasks.Pair)
    options = options_of(item, sorted({text["answer"] for text in FAQ}), pairs)
    assert len(set(options)) == 4
    return options


def test_greedy_answers_equal_transformers_generate(artifact: Artifact, task: Read) -> None:
    model: Any = tiny.loaded(artifact)
    encoder = Encoder(artifact)
    ids = encoder.ids(f"Question: {FAQ[0]['question']}\nAnswer:")
    out = model.generate(torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), max_new_tokens=9, do_sample=False)
    said = encoder.decode(out[0, len(ids) :].tolist())
    items = [{"question": FAQ[0]["question"], "answer": said[:4]}, {"question": "?", "answer": "never said"}]
    found = score(tiny.loaded(artifact), artifact, task('name = "a"\nkind = "pairs"\nchoices = 0\ngreedy = 9', *items))
    assert found.answers[0] == said
    assert found.measures["contained"] == (1, 0)
    assert found.measures["exact"] == (0, 0)
    assert "accuracy" not in found.measures


@pytest.mark.parametrize("by", ["pmi", "mean", "sum"])
def test_multiple_choice(artifact: Artifact, task: Read, by: str) -> None:
    items = [{"question": f"{n}?", "options": ["yes", "no, never", "x" * n], "answer": n % 3} for n in range(1, 9)]
    found = score(tiny.loaded(artifact), artifact, task(f'name = "a"\nkind = "choice"\nby = "{by}"', *items))
    for number, item in enumerate(items):
        options: Any = item["options"]
        asked = [likelihood(artifact, f"Question: {item['question']}\nAnswer:", f" {text}") for text in options]
        alone = [likelihood(artifact, "Question: \nAnswer:", f" {text}") for text in options]
        gains = {
            "sum": [a.sum() for a in asked],
            "mean": [a.mean() for a in asked],
            "pmi": [a.sum() - b.sum() for a, b in zip(asked, alone, strict=True)],
        }[by]
        assert found.chosen[number] == max(range(3), key=lambda index: gains[index])
        assert found.measures["nll"][number] == pytest.approx(-asked[number_of(item)].mean().item(), rel=1e-5)


def number_of(item: dict[str, Any]) -> int:
    return int(item["answer"])


def test_transcripts_are_scored_at_the_assistants_turns(artifact: Artifact, task: Read) -> None:
    turns = [("user", "Hi"), ("assistant", "Hello."), ("user", "Bye"), ("assistant", "See you.")]
    messages = [{"role": role, "content": content} for role, content in turns]
    found = score(
        tiny.loaded(artifact),
        artifact,
        task('name = "a"\nkind = "chat"', {"messages": messages}, {"messages": messages[:2]}),
    )
    first = likelihood(artifact, "<user>Hi<end><assistant>", "Hello.")
    second = likelihood(artifact, "<user>Hi<end><assistant>Hello.<end><user>Bye<end><assistant>", "See you.")
    expected = [-torch.cat([first, second]).mean().item(), -first.mean().item()]
    assert found.measures["nll"] == pytest.approx(expected, rel=1e-5)


def test_text_has_the_perplexity_that_a_recipe_reports(
    artifact: Artifact, task: Read, text: Any, tmp_path: Path
) -> None:
    words = f'name = "a"\nkind = "text"\nsource = "{text}"\ntokens = 1000\nwindow = 200'
    found = score(tiny.loaded(artifact), artifact, task(words))
    windows, _ = draw(Draw(str(text), range(10), 5, 200), Encoder(artifact))
    nll = found.measures["nll"]
    assert len(nll) == 5
    reported = perplexity(StageModel(artifact.config, artifact), windows, tmp_path / "evaluation", "")
    assert math.exp(sum(nll) / 5) == pytest.approx(reported, rel=1e-5)


def test_behaviour_is_compared_with_the_base(artifact: Artifact, task: Read) -> None:
    prompts = [{"prompt": f"Say {n}"} for n in range(10)]
    plan = plan_task(task('name = "a"\nkind = "behaviour"\ngreedy = 6', *prompts), artifact)
    base = scored_by(tiny.loaded(artifact), artifact, plan)
    own = carry_out(plan, base, None, "base")
    assert own.measures == {"kl": (0,) * 10, "flips": (0,) * 10, "agreement": (1,) * 10}
    same = carry_out(plan, scored_by(tiny.loaded(artifact), artifact, plan), base, "the same")
    assert same == own
    changed = tiny.loaded(artifact)
    with torch.no_grad():
        changed.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(-3)
    found = carry_out(plan, scored_by(changed, artifact, plan), base, "changed")
    number = 4
    before = Encoder(artifact).ids(f"Say {number}")
    ids = torch.tensor([before + list(own.replies[number])])
    other = tiny.loaded(artifact)
    with torch.no_grad():
        other.get_parameter("model.layers.1.mlp.down_proj.weight").mul_(-3)
        logits = [
            model(input_ids=ids, use_cache=False).logits[0, len(before) - 1 : -1]
            for model in (tiny.loaded(artifact), other)
        ]
    p, q = (part.double().softmax(dim=-1) for part in logits)
    assert found.measures["kl"][number] == pytest.approx((p * (p.log() - q.log())).sum(1).mean().item(), rel=1e-4)
    assert found.measures["flips"][number] == pytest.approx((p.argmax(1) != q.argmax(1)).double().mean().item())
    assert found.measures["agreement"] == tuple(float(a == b) for a, b in zip(found.replies, own.replies, strict=True))
    assert sum(found.measures["flips"]) > 0


def test_an_item_beyond_the_context_is_refused_before_a_model_is_loaded(artifact: Artifact, task: Read) -> None:
    long = {"id": "the-long-one", "question": "a" * 250, "answer": "b"}
    with pytest.raises(TaskError, match=r"item 'the-long-one' is \d+ tokens.*context is 256"):
        plan_task(task('name = "a"\nkind = "pairs"', long, *FAQ), artifact)
    with pytest.raises(TaskError, match=r"item '2' is \d+ tokens long with its prompt and reply"):
        plan_task(task('name = "a"\nkind = "behaviour"\ngreedy = 250', {"prompt": "a"}, {"prompt": "b" * 8}), artifact)


def test_a_model_without_a_template_cannot_chat(tmp_path_factory: pytest.TempPathFactory, task: Read) -> None:
    from pruning.stages.inputs import base_artifact

    folder = tmp_path_factory.mktemp("plain")
    mute = base_artifact(str(tiny.save(folder / "tiny")), folder / "base")
    with pytest.raises(DataError, match="no chat template"):
        plan_task(task('name = "a"\nkind = "pairs"\nchat = true', *FAQ), mute)


def test_a_shared_prefix_is_computed_once(artifact: Artifact, task: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    computed = []
    real = TransformersRunner.last

    def last(runner: TransformersRunner, batch: Batch, counts: Sequence[int]) -> torch.Tensor:
        computed.append(batch.tokens)
        return real(runner, batch, counts)

    monkeypatch.setattr(TransformersRunner, "last", last)
    options = [["one", "two", "three"], ["four", "five", "six"]]
    items = [{"question": "Which of these is it? " * 5, "options": some, "answer": 0} for some in options]
    plan = plan_task(task('name = "a"\nkind = "choice"\nby = "sum"', *items), artifact)
    scored = scored_by(tiny.loaded(artifact), artifact, plan)
    computed.clear()
    carry_out(plan, scored, None, "")
    question = len(Encoder(artifact).ids(f"Question: {items[0]['question']}\nAnswer:"))
    answers = sum(len(Encoder(artifact).ids(f" {text}")) for some in options for text in some)
    assert (
        sum(computed) == 2 * question + answers - 6 + 2 * 2
    )  # the question's last token is computed again for each option


KINDS = {
    "pairs": ('kind = "pairs"\nanswer_tokens = 12\ngreedy = 6', FAQ),
    "text": ('kind = "text"\nsource = "{text}"\ntokens = 1000\nwindow = 200', []),
    "behaviour": ('kind = "behaviour"\ngreedy = 6', [{"prompt": f"Say {n}"} for n in range(10)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_native_runner_scores_as_transformers_does(artifact: Artifact, task: Read, text: Path, kind: str) -> None:
    if reason := absent():
        pytest.skip(reason)
    words, items = KINDS[kind]
    plan = plan_task(task(f'name = "a"\n{words.replace("{text}", str(text))}', *items), artifact)
    base = scored_by(tiny.loaded(artifact), artifact, plan)
    expected = carry_out(plan, base, None, "transformers")
    native = loaded_model(load_runner(artifact, "native", options_for(plan)), artifact, plan)
    found = carry_out(plan, native, base if kind == "behaviour" else None, "native")
    assert found.replies == expected.replies
    for name, values in expected.measures.items():
        assert found.measures[name] == pytest.approx(values, rel=5e-3, abs=1e-3), name
