"""Token ids to train on, and others to judge by that come from texts which are never trained on.

Both are drawn from the same buckets: the texts are shuffled, the last ones are held out, the first ones are read in
order, as often as the budget asks.
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
from pruning.recipe.options import Continue, Domain, TextTraining, Training
from pruning.recipe.sources import SELF
from pruning.stages.inputs import Inputs
from server.artifact.checkpoint.lineage import Data

logger = logging.getLogger(__name__)


MOST_READINGS = 1000
"""Of the same texts: a budget beyond this is a slip of the pen, and its ids would fill the memory."""


class Lessons(NamedTuple):
    """Ids [sequences, length] to train on and ids to judge by, with their records."""

    training: Tensor
    held_out: Tensor
    training_data: Data
    held_out_data: Data

    def batch(self, step: int, size: int) -> Tensor:
        """The ids [size, length] of one step, the first of which is 1."""
        return self.training[(step - 1) * size :][:size]


class Origin(NamedTuple):
    """Which tenths of which text are read."""

    source: str
    buckets: tuple[int, ...]

    def shares(self, other: "Origin") -> bool:
        """Whether a text may come from both."""
        return self.source == other.source and (self.source == SELF or bool(set(self.buckets) & set(other.buckets)))


def draw(stage: TextTraining, inputs: Inputs) -> Lessons:
    """The ids that `stage` asks for, as often as its budget does; DataError where the texts do not suffice."""
    return _draw(stage, _origin(stage, inputs), inputs, again=True)


def draw_domains(stage: Continue, inputs: Inputs) -> list[Lessons]:
    """The ids of each domain, no more often than they stand there; DataError where the texts do not suffice."""
    return [_draw(stage, origin, inputs, again=False) for origin in origins(stage, inputs)]


def refuse_scarce(stage: TextTraining | Continue, inputs: Inputs) -> None:
    """Raise DataError where the texts of `stage` do not suffice; what the base itself writes always does."""
    again = isinstance(stage, TextTraining)
    for origin in _read(stage, inputs):
        if origin.source != SELF:
            _ids(stage, origin, inputs, again=again)


def sample(stage: TextTraining | Continue, inputs: Inputs) -> None:
    """Have the base write what `stage` reads of it; several processes that did so at once would refuse each other."""
    if any(origin.source == SELF for origin in _read(stage, inputs)):
        _own(stage, inputs)


def origins(stage: Continue, inputs: Inputs) -> list[Origin]:
    """Where the texts of each domain come from; RecipeError where two domains share some."""
    found = [_origin(domain, inputs) for domain in stage.domains]
    for (one, first), (other, second) in combinations(zip(stage.domains, found, strict=True), 2):
        if first.shares(second):
            remedy = "other sources" if first.source == SELF else "buckets that are apart"
            raise RecipeError(
                f"the domains {one.name} and {other.name} share texts of {first.source}, so that what one holds out "
                f"the other trains on: give them {remedy}"
            )
    return found


def joined(lessons: Sequence[Lessons]) -> Lessons:
    """The ids of several domains one after another, of which the records name every source."""
    training, held_out = (torch.cat([getattr(part, name) for part in lessons]) for name in ("training", "held_out"))
    source = ", ".join(dict.fromkeys(part.training_data.source for part in lessons))
    return _lessons(source, training, held_out, lessons[0].training_data.seed)


def _read(stage: TextTraining | Continue, inputs: Inputs) -> list[Origin]:
    """All that `stage` reads; raises as `origins`."""
    return origins(stage, inputs) if isinstance(stage, Continue) else [_origin(stage, inputs)]


def _origin(reader: TextTraining | Domain, inputs: Inputs) -> Origin:
    """What `reader` reads; what it leaves open is the calibration's."""
    calibration = inputs.recipe.calibration
    return Origin(reader.source or calibration.source, reader.buckets or calibration.buckets)


def _draw(stage: Training, origin: Origin, inputs: Inputs, *, again: bool) -> Lessons:
    """Hold out some texts and read others up to the budget, `again` where they do not suffice for it."""
    source, buckets = origin
    if source == SELF:
        return _own(stage, inputs)
    _warn(source, buckets, inputs)
    ids, held_ids, whole = _ids(stage, origin, inputs, again=again)
    if len(ids) > whole:
        readings = ceil(len(ids) / whole)
        logger.warning("the budget of %d tokens reads the %d tokens of the texts %d times", len(ids), whole, readings)
    training = torch.tensor(ids[: len(ids) // stage.length * stage.length]).view(-1, stage.length)
    return _lessons(source, training, torch.tensor(held_ids).view(-1, stage.length), stage.seed)


class Ids(NamedTuple):
    """What is read of the texts of one origin."""

    training: list[int]
    held_out: list[int]
    whole: int
    """How many ids to train on there are before any is read again."""


def _ids(stage: Training, origin: Origin, inputs: Inputs, *, again: bool) -> Ids:
    """The ids up to the budget, and those that are held out; DataError where the texts do not suffice."""
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
            f"{stage.held_out} x {stage.length} tokens and to train on others"
        )
    return Ids(ids, held_out, len(once))


def _lessons(source: str, training: Tensor, held_out: Tensor, seed: int) -> Lessons:
    """The ids with their records."""
    return Lessons(training, held_out, data_record(source, training, seed), data_record(source, held_out, seed))


def _own(stage: Training, inputs: Inputs) -> Lessons:
    """Sequences that the base itself writes; the last ones are held out."""
    count = stage.steps * stage.batch
    ids = sample_base(inputs.base, count + stage.held_out, stage.length, stage.seed)
    return _lessons(SELF, ids[:count], ids[count:], stage.seed)


def _warn(source: str, buckets: Iterable[int], inputs: Inputs) -> None:
    """Say so where the final figure is measured on texts that are trained on."""
    evaluation = inputs.recipe.evaluation
    if source == evaluation.source and set(buckets) & set(evaluation.buckets):
        logger.warning("training and evaluation share texts: the perplexity after training will flatter it")


def _take(texts: Iterable[Document], count: int, encoder: Encoder) -> tuple[list[int], list[Document]]:
    """The first `count` ids of `texts`, or all there are, and the texts that they come from."""
    ids: list[int] = []
    used: list[Document] = []
    for text in texts:
        if len(ids) >= count:
            break
        ids += encoder.encode(text)
        used.append(text)
    return ids[:count], used


def _repeat(once: list[int], texts: list[Document], count: int, seed: int, encoder: Encoder) -> list[int]:
    """`count` ids: those read `once`, and where they do not suffice the `texts` again, each time in another order."""
    if count > MOST_READINGS * len(once) > 0:
        raise DataError(
            f"the budget of {count} tokens would read the {len(once)} tokens of the texts more than {MOST_READINGS} "
            "times: name a smaller one, or more text"
        )
    ids, readings = once, 1
    while 0 < len(ids) < count:
        readings += 1
        order = random.Random(f"{seed}, {readings}").sample(texts, len(texts))
        ids = ids + _take(order, count - len(ids), encoder)[0]
    return ids
