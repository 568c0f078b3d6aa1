"""Training and held-out token ids of a training stage, drawn from one text or one per domain.

Both come from the same buckets: texts are shuffled, the last are held out, the first are read in order, repeatedly if
the budget needs it.
"""

import logging
import random
from collections.abc import Iterable, Sequence
from itertools import combinations
from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from pruning.data.documents import Document, documents_of
from pruning.data.draw import data_record
from pruning.data.encoder import Encoder
from pruning.data.mixing import mixed, shares
from pruning.data.self_calibration import sample_base
from pruning.errors import DataError, RecipeError
from pruning.recipe.recipe import texts_or_calibration
from pruning.recipe.sources import SELF
from pruning.recipe.texts import WeightedText
from pruning.recipe.training import Continue, Domain, TextTraining, Training
from pruning.stages.inputs import Inputs, warn_of_shared_texts
from server.artifact.checkpoint.lineage import Data

logger = logging.getLogger(__name__)


MOST_READINGS = 1000
"""Readings of the same texts; a larger budget is a typing error, and its ids would fill the memory."""


class TrainingData(NamedTuple):
    """Training and held-out ids [sequences, length], with the lineage's record of each."""

    training: Tensor
    held_out: Tensor
    training_record: Data
    held_out_record: Data

    def batch(self, step: int, size: int) -> Tensor:
        """The training ids [size, length] of `step`, counted from 1."""
        return self.training[(step - 1) * size :][:size]


Texts = tuple[WeightedText, ...]
"""The texts of a stage or a domain, with their weights."""


def draw_training_data(stage: TextTraining, inputs: Inputs) -> TrainingData:
    """The ids that `stage` trains on, repeated up to its budget; raises DataError if the texts do not suffice."""
    return _draw(stage, _texts(stage, inputs), inputs, again=True)


def draw_domain_data(stage: Continue, inputs: Inputs) -> list[TrainingData]:
    """The ids of each domain, without repeating its texts; raises DataError if these do not suffice."""
    return [_draw(stage, texts, inputs, again=False) for texts in domain_texts(stage, inputs)]


def refuse_scarce_text(stage: TextTraining | Continue, inputs: Inputs) -> None:
    """Raise DataError if the texts of `stage` do not suffice; self-generated text always does."""
    again = isinstance(stage, TextTraining)
    for texts in _read(stage, inputs):
        for text, amount in _amounts(stage, texts):
            if text.source != SELF:
                _ids(stage, text, amount, inputs, again=again)


def write_own_samples(stage: TextTraining | Continue, inputs: Inputs) -> None:
    """Generate the self-calibration text that `stage` trains on, if any, before several processes need it at once."""
    for texts in _read(stage, inputs):
        for text, amount in _amounts(stage, texts):
            if text.source == SELF:
                _own(stage, amount, inputs)


def domain_texts(stage: Continue, inputs: Inputs) -> list[Texts]:
    """The texts of each domain; raises RecipeError if two domains share texts."""
    found = [_texts(domain, inputs) for domain in stage.domains]
    for (one, first), (other, second) in combinations(zip(stage.domains, found, strict=True), 2):
        shared = [text.source for text in first for against in second if _share(text, against)]
        if shared:
            remedy = "other sources" if shared[0] == SELF else "disjoint buckets"
            raise RecipeError(
                f"the domains {one.name} and {other.name} share texts of {shared[0]}, so one trains on what the "
                f"other holds out: give them {remedy}"
            )
    return found


def joined(data: Sequence[TrainingData]) -> TrainingData:
    """The data of several domains concatenated; the records name every source."""
    training, held_out = (torch.cat([getattr(part, name) for part in data]) for name in ("training", "held_out"))
    source = ", ".join(dict.fromkeys(part.training_record.source for part in data))
    return _with_records(source, training, held_out, data[0].training_record.seed)


def _share(text: WeightedText, other: WeightedText) -> bool:
    """Whether both may contain the same text; what the base itself writes has no buckets."""
    return text.shares(other) or text.source == other.source == SELF


def _read(stage: TextTraining | Continue, inputs: Inputs) -> list[Texts]:
    """The texts that `stage` trains on, one tuple per domain; raises as `domain_texts`."""
    return domain_texts(stage, inputs) if isinstance(stage, Continue) else [_texts(stage, inputs)]


def _texts(reader: TextTraining | Domain, inputs: Inputs) -> Texts:
    """The texts of `reader`, with the calibration's texts and buckets by default."""
    own = reader.sources if isinstance(reader, TextTraining) else ()
    return own or texts_or_calibration(reader.source, reader.buckets, inputs.recipe.calibration)


class Amount(NamedTuple):
    """Sequences to draw of one text."""

    training: int
    held_out: int


def _amounts(stage: Training, texts: Texts) -> list[tuple[WeightedText, Amount]]:
    """The share of the budget and of the held-out sequences of each text."""
    training = shares(texts, stage.steps * stage.batch, "training sequences")
    held_out = shares(texts, stage.held_out, "held-out sequences")
    return [(text, Amount(*counts)) for text, *counts in zip(texts, training, held_out, strict=True)]


def _draw(stage: Training, texts: Texts, inputs: Inputs, *, again: bool) -> TrainingData:
    """Held-out and training ids of `texts`; with `again`, documents are repeated up to the budget."""
    parts = [_draw_one(stage, text, amount, inputs, again=again) for text, amount in _amounts(stage, texts)]
    training, training_record = mixed([(part.training, part.training_record) for part in parts])
    held_out, held_out_record = mixed([(part.held_out, part.held_out_record) for part in parts])
    return TrainingData(training, held_out, training_record, held_out_record)


def _draw_one(stage: Training, text: WeightedText, amount: Amount, inputs: Inputs, *, again: bool) -> TrainingData:
    """Held-out and training ids of one text."""
    if text.source == SELF:
        return _own(stage, amount, inputs)
    warn_of_shared_texts("training", [text], inputs.recipe)
    training, held_out, whole = _ids(stage, text, amount, inputs, again=again)
    if (count := training.numel()) > whole:
        readings = ceil(count / whole)
        logger.warning("the budget of %d tokens repeats the %d tokens of the texts %d times", count, whole, readings)
    return _with_records(text.source, training, held_out, stage.seed)


class DrawnIds(NamedTuple):
    """The ids read from the texts of one origin."""

    training: Tensor
    """[sequences, length]; each begins with the token that the tokenizer puts before a text, if any."""
    held_out: Tensor
    whole: int
    """Number of training ids before any text is repeated."""


def _ids(stage: Training, text: WeightedText, amount: Amount, inputs: Inputs, *, again: bool) -> DrawnIds:
    """Held-out ids, and training ids up to `amount`, repeated with `again`; raises DataError if they are too few."""
    source, buckets = text.source, text.buckets
    encoder = Encoder(inputs.base)
    texts = [document for document in documents_of(source, encoder.render) if document.bucket in buckets]
    random.Random(stage.seed).shuffle(texts)
    length = stage.length - len(encoder.start)
    held_out, judges = _take(reversed(texts), amount.held_out * length, encoder)
    known = {text.body for text in judges}
    rest = [text for text in texts if text.body not in known]
    wanted = amount.training * length
    once = _take(rest, wanted, encoder)[0]
    ids = _repeat(once, rest, wanted, stage.seed, encoder) if again else once
    if len(held_out) < amount.held_out * length or len(ids) < (wanted if again else length):
        raise DataError(
            f"{source} has {len(texts)} texts in the buckets {sorted(buckets)}: too few to hold out "
            f"{amount.held_out} x {stage.length} tokens and train on the others"
        )
    whole = len(ids) // length * length
    training, judged = (torch.tensor(part).view(-1, length) for part in (ids[:whole], held_out))
    return DrawnIds(encoder.begun(training), encoder.begun(judged), len(once) // length * stage.length)


def _with_records(source: str, training: Tensor, held_out: Tensor, seed: int) -> TrainingData:
    """The ids with their lineage records."""
    return TrainingData(training, held_out, data_record(source, training, seed), data_record(source, held_out, seed))


def _own(stage: Training, amount: Amount, inputs: Inputs) -> TrainingData:
    """Sequences generated by the base; the last ones are held out."""
    count = amount.training
    ids = sample_base(inputs.base, count + amount.held_out, stage.length, stage.seed)
    return _with_records(SELF, ids[:count], ids[count:], stage.seed)


def _take(texts: Iterable[Document], count: int, encoder: Encoder) -> tuple[list[int], list[Document]]:
    """The first `count` ids of `texts`, or all of them, and the texts they come from."""
    ids: list[int] = []
    used: list[Document] = []
    for text in texts:
        if len(ids) >= count:
            break
        ids += encoder.encode(text)
        used.append(text)
    return ids[:count], used


def _repeat(once: list[int], texts: list[Document], count: int, seed: int, encoder: Encoder) -> list[int]:
    """`count` ids: those of `once`, then the `texts` again, shuffled anew for each reading."""
    if count > MOST_READINGS * len(once) > 0:
        raise DataError(
            f"the budget of {count} tokens would read the {len(once)} tokens of the texts more than {MOST_READINGS} "
            "times: choose a smaller budget, or more text"
        )
    ids, readings = once, 1
    while 0 < len(ids) < count:
        readings += 1
        order = random.Random(f"{seed}, {readings}").sample(texts, len(texts))
        ids = ids + _take(order, count - len(ids), encoder)[0]
    return ids
