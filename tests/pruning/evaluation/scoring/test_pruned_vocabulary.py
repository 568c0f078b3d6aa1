"""An artifact with a pruned vocabulary is scored on the same text as its base, per token of the base."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from pruning.commands.__main__ import main
from pruning.evaluation.comparison.results import Results
from server.artifact.checkpoint.reader import Artifact
from tests.pruning.stages.vocabulary import test_vocabulary as vocabulary

pytestmark = pytest.mark.slow

WORDS = vocabulary.words(2, 300)
"""The base's vocabulary comes from all of them; the text that decides which tokens stay has only the first 30."""
ITEMS = [{"question": f"{WORDS[n]} {n}?", "answer": " ".join(WORDS[100 + 9 * n : 106 + 9 * n])} for n in range(6)]
TASKS = {
    "text": 'kind = "text"\nsource = "{text}"\nbuckets = [7, 8, 9]\ntokens = 96\nwindow = 32\n',
    "pairs": 'kind = "pairs"\nitems = "items.jsonl"\ngreedy = 4\n',
    "behaviour": 'kind = "behaviour"\nitems = [{ prompt = "kalo" }, { prompt = "mite" }]\n',
}


class Place:
    """An artifact with a smaller vocabulary, its base, and tasks."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder, vocabulary.save(folder / "model")
        self.artifact = vocabulary.prune(vocabulary.recipe(self.base, folder, vocabulary.STAGE), folder)
        (folder / "items.jsonl").write_text("\n".join(map(json.dumps, ITEMS)))
        for kind, text in TASKS.items():
            (folder / f"{kind}.toml").write_text(f'name = "{kind}"\n{text.replace("{text}", str(folder / "text.txt"))}')

    def evaluate(self, kind: str) -> int:
        arguments = ["--task", str(self.folder / f"{kind}.toml"), "--base-cache", str(self.folder / "base")]
        return main(["evaluate", str(self.artifact.path), *arguments])

    def results(self, kind: str) -> Results:
        return msgspec.json.decode((self.folder / f"out.evaluation/{kind}.json").read_bytes(), type=Results)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return Place(tmp_path_factory.mktemp("fewer"))


def test_text_has_the_perplexities_in_the_lineage(place: Place) -> None:
    assert place.evaluate("text") == 0
    recorded = Artifact.open(place.artifact.path).lineage.evaluation
    assert recorded
    base, *_, pruned = (row.measures["perplexity"].value for row in place.results("text").rows)
    assert base == pytest.approx(recorded.perplexity["dense"], rel=0.01)
    assert pruned == pytest.approx(recorded.perplexity["pruned"], rel=0.01)


@torch.no_grad()
def test_losses_of_answers_are_per_token_of_the_base(place: Place) -> None:
    assert place.evaluate("pairs") == 0
    model: Any = AutoModelForCausalLM.from_pretrained(place.artifact.path, dtype=torch.float32)
    before, after = vocabulary.tokenizers(place.base, place.artifact.path)
    losses, split = [], 0
    for item in ITEMS:
        answer = before.encode(f" {item['answer']}", add_special_tokens=False).tokens[:64]
        asked = before.encode(f"<start>Question: {item['question']}\nAnswer:", add_special_tokens=False).tokens
        first, wanted = spelt(asked, after), spelt(answer, after)
        split += len(wanted) - len(answer)
        found = model(torch.tensor([first + wanted])).logits[0, len(first) - 1 : -1].log_softmax(dim=-1)
        losses.append(-sum(found[n, id].item() for n, id in enumerate(wanted)) / len(answer))
    assert split > 0  # some tokens are gone
    found = place.results("pairs").rows[-1].measures
    assert found["nll"].value == pytest.approx(sum(losses) / len(losses), rel=0.01)
    assert "contained" in found


def spelt(tokens: list[str], after: Tokenizer) -> list[int]:
    """The ids of `tokens`; a token missing from the vocabulary is split by the model."""
    known = after.get_vocab()
    pieces = [[known[t]] if t in known else [p.id for p in after.model.tokenize(t)] for t in tokens]
    return [id for piece in pieces for id in piece]


def test_incomparable_tasks_are_refused_before_any_work(
    place: Place, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = "the artifact's vocabulary was pruned, so its tokens are not the base's"
    assert place.evaluate("behaviour") == 2
    assert said in capsys.readouterr().err
    recipe = vocabulary.recipe(place.base, tmp_path, vocabulary.STAGE)
    recipe.write_text(f'tasks = ["{place.folder / "behaviour.toml"}"]\n{recipe.read_text()}')
    assert vocabulary.run(recipe, tmp_path) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))
