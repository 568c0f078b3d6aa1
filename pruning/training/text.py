"""Token ids to train on, and others to judge by that come from texts which are never trained on.

Both are drawn from the same buckets: the texts are shuffled, the last ones are held out, the first ones are read in
order, as often as the budget asks.
"""

import logging
import random
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from pruning.data import Encoder, Text, data_record, texts_of
from pruning.errors import DataError
from pruning.inputs import Inputs
from pruning.samples import own_samples
from pruning.sources import SELF
from pruning.stages import Reading
from server.checkpoint.lineage import Data

logger = logging.getLogger(__name__)


class Lessons(NamedTuple):
    """Ids [sequences, length] to train on and ids to judge by, with their records."""

    training: Tensor
    held_out: Tensor
    training_data: Data
    held_out_data: Data

    def batch(self, step: int, size: int) -> Tensor:
        """The ids [size, length] of one step, the first of which is 1."""
        return self.training[(step - 1) * size :][:size]


def draw(stage: Reading, inputs: Inputs) -> Lessons:
    """The ids that `stage` asks for; raises DataError, with the numbers, where the texts do not suffice."""
    calibration = inputs.recipe.calibration
    source = stage.source or calibration.source
    buckets = stage.buckets or calibration.buckets
    if source == SELF:
        return _own(stage, inputs)
    _warn(source, buckets, inputs)
    encoder = Encoder(inputs.base)
    texts = [text for text in texts_of(source, encoder.chat) if text.bucket in buckets]
    random.Random(stage.seed).shuffle(texts)
    held_ids, judges = _take(reversed(texts), stage.held_out * stage.length, encoder)
    known = {text.body for text in judges}
    rest = [text for text in texts if text.body not in known]
    wanted = stage.steps * stage.batch * stage.length
    ids = _read(rest, wanted, stage.seed, encoder)
    if len(held_ids) < stage.held_out * stage.length or len(ids) < wanted:
        raise DataError(
            f"{source} has {len(texts)} texts in the buckets {sorted(buckets)}: too few to hold out "
            f"{stage.held_out} x {stage.length} tokens and to train on others"
        )
    training = torch.tensor(ids).view(-1, stage.length)
    held_out = torch.tensor(held_ids).view(-1, stage.length)
    return Lessons(
        training, held_out, data_record(source, training, stage.seed), data_record(source, held_out, stage.seed)
    )


def _own(stage: Reading, inputs: Inputs) -> Lessons:
    """Sequences that the base itself writes; the last ones are held out."""
    count = stage.steps * stage.batch
    ids = own_samples(inputs.base, count + stage.held_out, stage.length, stage.seed)
    records = (data_record(SELF, part, stage.seed) for part in (ids[:count], ids[count:]))
    return Lessons(ids[:count], ids[count:], *records)


def _warn(source: str, buckets: Iterable[int], inputs: Inputs) -> None:
    """Say so where the final figure is measured on texts that are trained on."""
    evaluation = inputs.recipe.evaluation
    if source == evaluation.source and set(buckets) & set(evaluation.buckets):
        logger.warning("training and evaluation share texts: the perplexity after training will flatter it")


def _take(texts: Iterable[Text], count: int, encoder: Encoder) -> tuple[list[int], list[Text]]:
    """The first `count` ids of `texts`, or all there are, and the texts that they come from."""
    ids: list[int] = []
    used: list[Text] = []
    for text in texts:
        if len(ids) >= count:
            break
        ids += encoder.encode(text.body)
        used.append(text)
    return ids[:count], used


def _read(texts: list[Text], count: int, seed: int, encoder: Encoder) -> list[int]:
    """`count` ids of `texts`, which are read again in another order where they do not suffice."""
    ids = _take(texts, count, encoder)[0]
    whole, readings = len(ids), 1
    while 0 < len(ids) < count:
        readings += 1
        order = random.Random(f"{seed}, {readings}").sample(texts, len(texts))
        ids += _take(order, count - len(ids), encoder)[0]
    if readings > 1:
        logger.warning("the budget of %d tokens reads the %d tokens of the texts %d times", count, whole, readings)
    return ids
