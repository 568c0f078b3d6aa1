"""Runners without a model, for tests of everything above one: each says in advance which ids it will produce."""

import time
from collections.abc import Sequence as Ids

import torch
from torch import Tensor

from server.engine.batch import Batch
from server.engine.choice import Choice
from server.engine.sequence import Sequence


class FakeRunner:
    """Makes `reply(sequence)` the next id by far; `delay` seconds a step; raises after `fail_after` steps."""

    def __init__(self, vocabulary: int, *, delay: float = 0.0, fail_after: int | None = None) -> None:
        self.vocabulary = vocabulary
        self.exact_rows = True
        self.choices: tuple[Choice, ...] = (Choice("runner", "fake", "no model is needed above it"),)
        self.delay = delay
        self.fail_after = fail_after
        self.steps = 0

    def reply(self, sequence: Sequence) -> int:
        raise NotImplementedError

    def forward(self, batch: Batch) -> Tensor:
        self.steps += 1
        time.sleep(self.delay)
        if self.fail_after is not None and self.steps > self.fail_after:
            raise RuntimeError("the fake runner was told to fail")
        logits = torch.zeros(len(batch.sampled), self.vocabulary)
        for row, sequence in enumerate(batch.sampled):
            logits[row, self.reply(sequence)] = 50.0
        return logits


class ScriptRunner(FakeRunner):
    """Replies to everyone with the ids of `script`, the last of them for ever."""

    def __init__(self, script: Ids[int], vocabulary: int, *, delay: float = 0.0, fail_after: int | None = None) -> None:
        super().__init__(vocabulary, delay=delay, fail_after=fail_after)
        self.script = tuple(script)

    def reply(self, sequence: Sequence) -> int:
        return self.script[min(sequence.generated, len(self.script) - 1)]


class EchoRunner(FakeRunner):
    """Replies with the prompt's own ids from the first, then with `stop_id`."""

    def __init__(self, stop_id: int, vocabulary: int, *, delay: float = 0.0, fail_after: int | None = None) -> None:
        super().__init__(vocabulary, delay=delay, fail_after=fail_after)
        self.stop_id = stop_id

    def reply(self, sequence: Sequence) -> int:
        return sequence.prompt[sequence.generated] if sequence.generated < len(sequence.prompt) else self.stop_id
