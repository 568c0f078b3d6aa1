"""The base's own answers to questions: text of a deployment's kind on which its distributions are what it would say.

Yang et al., Self-Distillation Bridges Distribution Gap in Language Model Fine-Tuning,
https://arxiv.org/abs/2402.13669. Each answer is sampled with a seed of its own, so it does not depend on the others.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from pruning.data.encoder import Encoder
from pruning.errors import DataError, ModelRefused
from server.artifact.checkpoint.reader import Artifact
from server.progress import Progress


class Sampling(NamedTuple):
    """How answers are sampled."""

    tokens: int
    """Most tokens of an answer."""
    temperature: float
    """0 takes the likeliest token."""
    seed: int


def questions_in(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of JSON lines that have a "question" and are not held out; raises DataError."""
    found = []
    try:
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), 1):
            value = json.loads(line) if line.strip() else {"held_out": True}
            if not isinstance(value, dict) or not (value.get("held_out") or isinstance(value.get("question"), str)):
                raise DataError(
                    f'{path}: line {number} has no "question": give an object such as {{"question": "..."}}'
                )
            if not value.get("held_out"):
                found.append(value)
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as JSON lines: {error}") from None
    if not found:
        raise DataError(f"{path} holds no question that is not held out")
    return found


def base_answers(base: Artifact, questions: Sequence[str], sampling: Sampling) -> Iterator[str]:
    """The answer of `base` to each question as a chat, without the end-of-text token; the model is in memory, 16 bits.

    Raises DataError for a model without a chat template, ModelRefused if its logits are not finite.
    """
    from pruning.model.base import load  # brings transformers, which takes seconds

    encoder = Encoder(base)
    prompts = [encoder.prompt([{"role": "user", "content": question}]) for question in questions]
    network = load(base.config, base, torch.bfloat16)
    end = base.config.get("eos_token_id")
    ends = set(end if isinstance(end, list) else [end])
    with Progress("answering", len(prompts)) as progress:
        for question, prompt in zip(questions, prompts, strict=True):
            yield encoder.decode(_sample(network, prompt, ends, sampling, question))
            progress.step()


@torch.inference_mode()
def _sample(network: nn.Module, prompt: list[int], ends: set[Any], sampling: Sampling, question: str) -> list[int]:
    """The ids of one answer."""
    from pruning.model.base import advance

    digest = hashlib.sha256(f"{sampling.seed}, {question}".encode()).digest()
    draw = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    answer: list[int] = []
    given, cache = torch.tensor([prompt]), None
    while len(answer) < sampling.tokens:
        logits, cache = advance(network, given, cache)
        last = logits[0, -1].float()
        if not last.isfinite().all():
            raise ModelRefused("the base computes logits that are not finite, so it cannot be sampled from")
        if sampling.temperature:
            token = int(torch.multinomial((last / sampling.temperature).softmax(dim=-1), 1, generator=draw))
        else:
            token = int(last.argmax())
        if token in ends:
            break
        answer.append(token)
        given = torch.tensor([[token]])
    return answer
