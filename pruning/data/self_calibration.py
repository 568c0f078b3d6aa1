"""Self-calibration: token sequences sampled from the base itself, for when there is no text.

Williams, Chrysostomou and Aletras, Self-calibration for Language Model Quantization and Pruning,
https://arxiv.org/abs/2410.17170. Sequences start with the begin-of-text token and are sampled at temperature 1. Each
batch has its own seed and is cached in a file beside the base, so a killed run resumes. Unlike other sources it needs
the whole model in memory, at 16 bits.
"""

import hashlib
import logging
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pruning.errors import DataError, ModelRefused
from pruning.model.weights import Shards, write_file
from pruning.recipe.sources import SELF
from server.artifact.checkpoint.reader import Artifact
from server.progress import Progress
from server.storage.lock import locked

logger = logging.getLogger(__name__)

BATCH = 8
"""Sequences sampled together; only whole batches are sampled, so a smaller request is a prefix of a larger one."""


def sample_base(base: Artifact, sequences: int, tokens: int, seed: int) -> Tensor:
    """Ids [sequences, tokens] sampled from `base`, cached beside it; raises DataError, ModelRefused or Busy."""
    folder = base.path.with_name(f"{base.path.name}.self") / f"{tokens}-tokens-seed-{seed}"
    files = [folder / f"batch-{number:05}.safetensors" for number in range(ceil(sequences / BATCH))]
    if not all(file.exists() for file in files):
        with locked(folder / ".lock", f"sampling into {folder}"):
            _make(base, files, tokens, seed)
    return torch.cat([Shards([file]).tensor("ids") for file in files])[:sequences]


def _make(base: Artifact, files: list[Path], tokens: int, seed: int) -> None:
    """Sample the batches whose files are missing."""
    from pruning.model.base import load  # brings transformers, which takes seconds

    start = first_token(base.config)
    logger.info("sampling from the base itself: the whole model is in memory, at 16 bits")
    network = load(base.config, base, torch.bfloat16)
    missing = {number: file for number, file in enumerate(files) if not file.exists()}
    total = len(files) * tokens
    with Progress("sampling from the base", total, total - len(missing) * tokens) as progress:
        for number, file in missing.items():
            write_file(file, {"ids": _sample(network, start, tokens, f"{seed}, {number}", progress)})


def first_token(config: dict[str, Any]) -> int:
    """The begin-of-text id, else the end-of-text id; raises DataError where config.json names neither."""
    words = config.get("vocab_size")
    for key in ("bos_token_id", "eos_token_id"):
        token = config.get(key)
        token = next(iter(token), None) if isinstance(token, list) else token
        if token is None:
            continue
        if token < 0 or (words is not None and token >= words):
            raise DataError(f'source = "{SELF}": config.json has {key} = {token}, but vocab_size is {words}')
        return int(token)
    raise DataError(f'source = "{SELF}": config.json has neither bos_token_id nor eos_token_id to start a sample with')


@torch.inference_mode()
def _sample(network: nn.Module, start: int, tokens: int, seed: str, progress: Progress) -> Tensor:
    """One batch of ids [BATCH, tokens]; each sequence starts with `start`."""
    from pruning.model.base import advance

    generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:8], "big") >> 1)
    ids = [torch.full((BATCH, 1), start)]
    cache = None
    progress.step()
    while len(ids) < tokens:
        logits, cache = advance(network, ids[-1], cache)
        if not logits.isfinite().all():
            raise ModelRefused("the base computes logits that are not finite, so it cannot be sampled from")
        ids.append(torch.multinomial(logits[:, -1].float().softmax(dim=-1), 1, generator=generator))
        progress.step()
    return torch.cat(ids, dim=1)
