"""The choice of tokens by what a text loses, against encoding it without them."""

import json
from collections import Counter
from typing import Any

import pytest
from tokenizers import Tokenizer, models, trainers

from pruning.stages.vocabulary import bpe
from pruning.stages.vocabulary.token_choice import choose, lengthening
from pruning.stages.vocabulary.token_counts import with_general_use
from tests.pruning.stages.vocabulary.test_vocabulary import LETTERS, sentences, toy, words


def test_a_removed_token_counts_for_what_it_falls_into() -> None:
    merges = [("a", "b"), ("ab", "c"), ("d", "e"), ("f", "g"), ("h", "i"), ("j", "k")]
    counts = {"abc": 4, "de": 6, "fg": 5, "hi": 5, "jk": 5}
    definition = toy(LETTERS, merges)
    kept = choose(definition, [], counts, 64)
    assert kept == {*LETTERS, "de", "fg", "hi", "jk"}, "ab alone would be worth 4, as much as abc"
    extra = lengthening(bpe.Merges(definition["model"]), kept, counts)
    assert extra == 8, "each occurrence of abc becomes three tokens"


def test_the_loss_is_how_much_longer_the_text_becomes() -> None:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bytes_ = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    text = sentences(1, words(2, 300), 100).replace("\n", " ")
    tokenizer.train_from_iterator([text], trainers.BpeTrainer(vocab_size=900, special_tokens=bytes_))
    definition = json.loads(tokenizer.to_str())
    tokens = tokenizer.encode(text).tokens
    counts = {token: float(tokens.count(token)) for token in set(tokens)}
    ids = bpe.ids_of(definition)
    for keep in (384, 512, 640):
        kept = choose(definition, bytes_, counts, keep)
        assert len(kept) == keep
        number = {id: new for new, id in enumerate(sorted(ids[token] for token in kept))}
        after = Tokenizer.from_str(json.dumps(bpe.without_others(definition, number)))
        longer = len(after.encode(text).tokens) - len(tokens)
        extra = lengthening(bpe.Merges(definition["model"]), kept, counts)
        assert extra == pytest.approx(longer, rel=0.05), "apart from merges across two tokens of the text"


def added(*contents: str) -> list[dict[str, Any]]:
    return [{"id": 61 + n, "content": content, "special": True} for n, content in enumerate(contents)]


def test_added_tokens_that_nothing_names_go() -> None:
    definition = toy(LETTERS, [("a", "b")]) | {"added_tokens": added(*(f"<{n}>" for n in range(70)))}
    definition["post_processor"] = {"special_tokens": {"<3>": {"id": "<3>", "ids": [64], "tokens": ["<3>"]}}}
    assert bpe.named_tokens(definition) == [64]
    kept = choose(definition, ["<3>"], {"ab": 2, "<5>": 1}, 64)
    assert kept == {*LETTERS, "<3>", "<5>", "ab", "<0>"}, "and an unused one makes the number round"
    number = {id: new for new, id in enumerate(sorted(bpe.ids_of(definition)[token] for token in kept))}
    assert [token["content"] for token in bpe.without_others(definition, number)["added_tokens"]] == [
        "<0>",
        "<3>",
        "<5>",
    ]


def test_general_use_is_weighed_by_the_order_of_merges() -> None:
    merges = bpe.Merges(toy(LETTERS, [("a", "b"), ("ab", "c"), ("d", "e")])["model"])
    used = with_general_use({"de": 6.0, "f": 4.0}, merges, weight=2)
    assert sum(used.values()) == pytest.approx(3 * 10), "the text's own ten and twice as much"
    assert used["f"] == 4.0, "a letter is made by no merge"
    assert used["ab"] / used["abc"] == pytest.approx(101 / 100)
    assert used["de"] - 6 == pytest.approx(used["ab"] * 100 / 102)


def test_with_general_use_a_text_of_another_kind_grows_less() -> None:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    bytes_ = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    common, jargon = words(2, 300), words(3, 300)
    general = sentences(1, common, 300).replace("\n", " ")
    tokenizer.train_from_iterator([general], trainers.BpeTrainer(vocab_size=900, special_tokens=bytes_))
    definition = json.loads(tokenizer.to_str())
    merges = bpe.Merges(definition["model"])

    def counts(text: str) -> dict[str, float]:
        return {token: float(number) for token, number in Counter(tokenizer.encode(text).tokens).items()}

    seen = counts(sentences(4, jargon, 100).replace("\n", " "))
    unseen = counts(sentences(5, common, 100).replace("\n", " "))
    alone = choose(definition, bytes_, seen, 512)
    smoothed = choose(definition, bytes_, with_general_use(seen, merges, 1), 512)
    assert lengthening(merges, smoothed, unseen) < 0.9 * lengthening(merges, alone, unseen)
