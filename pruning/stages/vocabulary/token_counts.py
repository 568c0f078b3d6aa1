"""Counts how often a deployment uses each token: in its texts, and in general as the tokenizer's own merges tell it."""

from collections import Counter
from collections.abc import Mapping

from pruning.data.documents import documents_of
from pruning.data.encoder import Encoder
from pruning.data.self_calibration import sample_base
from pruning.errors import DataError
from pruning.recipe.options import Vocabulary
from pruning.recipe.recipe import texts_or_calibration
from pruning.recipe.sources import SELF
from pruning.recipe.texts import WeightedText
from pruning.stages.inputs import Inputs, warn_of_shared_texts
from pruning.stages.vocabulary.bpe import Merges
from server.progress import Progress

OFFSET = 100
"""Mandelbrot's offset in Zipf's law."""


def count_in_texts(stage: Vocabulary, inputs: Inputs) -> dict[int, float]:
    """Occurrences of each token id in the texts of the stage, by default those of the calibration.

    Of several texts each counts with its weight, however long it is.
    """
    texts = texts_or_calibration(stage.source, stage.buckets, inputs.recipe.calibration)
    warn_of_shared_texts("vocabulary", texts, inputs.recipe)
    found = [_count_text(text, inputs) for text in texts]
    if len(found) == 1:
        return dict(found[0])
    share = sum(map(Counter.total, found)) / sum(text.weight for text in texts)
    counts: dict[int, float] = {}
    for text, own in zip(texts, found, strict=True):
        for id, count in own.items():
            counts[id] = counts.get(id, 0) + count * share * text.weight / own.total()
    return counts


def with_general_use(counts: Mapping[str, float], merges: Merges, weight: float) -> dict[str, float]:
    """`counts` and what text in general adds to them, `weight` times their sum.

    A byte-pair encoding merges what is frequent first, so its merges are a ranked list of the text it was made from; a
    token of rank r counts 1 / (r + 100), by the law of Zipf and Mandelbrot.
    """
    share = {token: 1 / (rank + OFFSET) for token, rank in merges.ranked().items()}
    scale = weight * sum(counts.values()) / sum(share.values())
    return {token: counts.get(token, 0) + scale * share.get(token, 0) for token in {**counts, **share}}


def _count_text(text: WeightedText, inputs: Inputs) -> Counter[int]:
    """Occurrences of each token id in one text."""
    calibration = inputs.recipe.calibration
    if text.source == SELF:
        ids = sample_base(inputs.base, calibration.sequences, calibration.tokens, calibration.seed)
        return Counter(ids.flatten().tolist())
    encoder = Encoder(inputs.base)
    found = [document for document in documents_of(text.source, encoder.render) if document.bucket in text.buckets]
    if not found:
        raise DataError(f"{text.source} has no text in the buckets {sorted(text.buckets)}")
    counts: Counter[int] = Counter()
    with Progress("counting tokens", len(found)) as progress:
        for document in found:
            counts.update(encoder.encode(document))
            progress.step()
    return counts
