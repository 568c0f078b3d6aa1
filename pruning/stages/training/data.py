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
from pruning.data.self_calibration import sample_base
from pruning.errors import DataError, RecipeError
from pruning.recipe.sources import SELF
from pruning.recipe.training import Continue, Domain, TextTraining, Training
from pruning.stages.inputs import Inputs
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


class Origin(NamedTuple):
    """A source of text and the buckets of its documents to read."""

    source: str
    buckets: tuple[int, ...]

    def shares(self, other: "Origin") -> bool:
        """Whether both may contain the same text."""
        return self.source == other.source and (self.source == SELF or bool(set(self.buckets) & set(other.buckets)))


def draw_training_data(stage: TextTraining, inputs: Inputs) -> TrainingData:
    """The ids that `stage` trains on, repeated up to its budget; raises DataError if the texts do not suffice."""
    return _draw(stage, _origin(stage, inputs), inputs, again=True)


def draw_domain_data(stage: Continue, inputs: Inputs) -> list[TrainingData]:
    """The ids of each domain, without repeating its texts; raises DataError if these do not suffice."""
    return [_draw(stage, origin, inputs, again=False) for origin in origins(stage, inputs)]


def refuse_scarce_text(stage: TextTraining | Continue, inputs: Inputs) -> None:
    """Raise DataError if the texts of `stage` do not suffice; self-generated text always does."""
    again = isinstance(stage, TextTraining)
    for origin in _read(stage, inputs):
        if origin.source != SELF:
            _ids(stage, origin, inputs, again=again)


def write_own_samples(stage: TextTraining | Continue, inputs: Inputs) -> None:
    """Generate the self-calibration text that `stage` trains on, if any, before several processes need it at once."""
    if any(origin.source == SELF for origin in _read(stage, inputs)):
        _own(stage, inputs)


def origins(stage: Continue, inputs: Inputs) -> list[Origin]:
    """The text and buckets of each domain; raises RecipeError if two domains share texts."""
    found = [_origin(domain, inputs) for domain in stage.domains]
    for (one, first), (other, second) in combinations(zip(stage.domains, found, strict=True), 2):
        if first.shares(second):
            remedy = "other sources" if first.source == SELF else "disjoint buckets"
            raise RecipeError(
                f"the domains {one.name} and {other.name} share texts of {first.source}, so one trains on what the "
                f"other holds out: give them {remedy}"
            )
    return found


def joined(data: Sequence[TrainingData]) -> TrainingData:
    """The data of several domains concatenated; the records name every source."""
    training, held_out = (torch.cat([getattr(part, name) for part in data]) for name in ("training", "held_out"))
    source = ", ".join(dict.fromkeys(part.training_record.source for part in data))
    return _with_records(source, training, held_out, data[0].training_record.seed)


def _read(stage: TextTraining | Continue, inputs: Inputs) -> list[Origin]:
    """The text and buckets that `stage` trains on, one per domain; raises as `origins`."""
    return origins(stage, inputs) if isinstance(stage, Continue) else [_origin(stage, inputs)]


def _origin(reader: TextTraining | Domain, inputs: Inputs) -> Origin:
    """The origin of `reader`, with the calibration's text and buckets by default."""
    calibration = inputs.recipe.calibration
    return Origin(reader.source or calibration.source, reader.buckets or calibration.buckets)


def _draw(stage: Training, origin: Origin, inputs: Inputs, *, again: bool) -> TrainingData:
    """Held-out and training ids of `origin`; with `again`, texts are repeated up to the budget."""
    source, buckets = origin
    if source == SELF:
        return _own(stage, inputs)
    _warn_of_shared_texts(source, buckets, inputs)
    ids, held_ids, whole = _ids(stage, origin, inputs, again=again)
    if len(ids) > whole:
        readings = ceil(len(ids) / whole)
        logger.warning("the budget of %d tokens repeats the %d tokens of the texts %d times", len(ids), whole, readings)
    training = torch.tensor(ids[: len(ids) // stage.length * stage.length]).view(-1, stage.length)
    return _with_records(source, training, torch.tensor(held_ids).view(-1, stage.length), stage.seed)


class DrawnIds(NamedTuple):
    """The ids read from the texts of one origin."""

    training: list[int]
    held_out: list[int]
    whole: int
    """Number of training ids before any text is repeated."""


def _ids(stage: Training, origin: Origin, inputs: Inputs, *, again: bool) -> DrawnIds:
    """Held-out ids, and training ids up to the budget, repeating texts with `again`; DataError if they are too few."""
    source, buckets = origin
    encoder = Encoder(inputs.base)
    texts = [text for text in documents_of(source, encoder.render) if text.bucket in buckets]
    random.Random(stage.seed).shuffle(texts)
    held_out, judges = _take(reversed(texts), stage.held_out * stage.length, encoder)
    known = {text.body for text in judges}
    rest = [text for text in texts if text.body not in known]
    wanted = stage.steps * stage.batch * stage.length
    once = _take(rest, wanted, encoder)[0]
    ids = _repeat(once, rest, wanted, stage.seed, encoder) if again else once
    if len(held_out) < stage.held_out * stage.length or len(ids) < (wanted if again else stage.length):
        raise DataError(
            f"{source} has {len(texts)} texts in the buckets {sorted(buckets)}: too few to hold out "
            f"{stage.held_out} x {stage.length} tokens and train on the others"
        )
    return DrawnIds(ids, held_out, len(once))


def _with_records(source: str, training: Tensor, held_out: Tensor, seed: int) -> TrainingData:
    """The ids with their lineage records."""
    return TrainingData(training, held_out, data_record(source, training, seed), data_record(source, held_out, seed))


def _own(stage: Training, inputs: Inputs) -> TrainingData:
    """Sequences generated by the base; the last ones are held out."""
    count = stage.steps * stage.batch
    ids = sample_base(inputs.base, count + stage.held_out, stage.length, stage.seed)
    return _with_records(SELF, ids[:count], ids[count:], stage.seed)


def _warn_of_shared_texts(source: str, buckets: Iterable[int], inputs: Inputs) -> None:
    """Warn if the final perplexity is measured on texts that are trained on."""
    evaluation = inputs.recipe.evaluation
    if source == evaluation.source and set(buckets) & set(evaluation.buckets):
        logger.warning("training and evaluation share texts: the perplexity after training will flatter it")


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
