"""Encodes texts as vectors with a BERT-family model (Sentence-BERT, Reimers and Gurevych 2019, arXiv:1908.10084).

Pooling and normalisation are those of the model's own sentence-transformers files. Code that comes with a model is
never run.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_MAPPING

from server.engine.runners import encoder_files
from server.errors import ArtifactError

BATCH_TOKENS = 2048
"""Padded tokens of one forward pass at most, unless a single text is longer."""
UNUSED = ("pooler.", "position_ids", "cls.", "lm_head.", "classifier.")
"""Parts of the names of weights that no pooled vector depends on."""


class Encoded(NamedTuple):
    """Vectors float32 [texts, dimension], and how many tokens of each text were read, special ones included."""

    vectors: NDArray[numpy.float32]
    tokens: list[int]


class Encoder:
    """A loaded encoder, float32 on the CPU; thread-safe, one forward pass at a time on `threads` threads."""

    def __init__(self, path: Path, *, threads: int = 1) -> None:
        config = encoder_files.config(path)
        self.recipe = encoder_files.recipe(path, config)
        self._tokenizer = encoder_files.tokenizer(path)
        self._before, self._after = encoder_files.wrapping(self._tokenizer)
        self._model = _model(path, config)
        self._padding = int(config.get("pad_token_id") or 0)
        self._threads = threads
        self._lock = threading.Lock()
        self.dimension = int(config.get("hidden_size") or config["dim"])
        """Numbers in each vector."""
        self.vocabulary = int(config["vocab_size"])
        """The number of token ids."""

    @classmethod
    def open(cls, path: Path, *, threads: int = 1) -> Self:
        """Load the encoder in the directory `path`; raises ArtifactError naming the file that is missing or unusable.

        The directory needs config.json, tokenizer.json and weights in safetensors.
        """
        return cls(path, threads=threads)

    @property
    def special_tokens(self) -> int:
        """The number of special tokens around each text, which count towards `recipe.max_tokens`."""
        return len(self._before) + len(self._after)

    def tokens(self, text: str) -> list[int]:
        """The ids of `text`, not cut, without special tokens; one that the text spells is encoded as text."""
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    def encode(self, inputs: Sequence[str] | Sequence[Sequence[int]]) -> Encoded:
        """Encode texts, or lists of ids as from `tokens`; each is cut at `recipe.max_tokens`."""
        rows = [self._wrapped(self.tokens(one) if isinstance(one, str) else one) for one in inputs]
        vectors = numpy.empty((len(rows), self.dimension), dtype=numpy.float32)
        with self._lock, _threads(self._threads):
            for batch in _batches([len(row) for row in rows]):
                vectors[batch] = self._forward([rows[index] for index in batch]).numpy()
        return Encoded(vectors, [len(row) for row in rows])

    def _wrapped(self, ids: Sequence[int]) -> list[int]:
        return [*self._before, *ids[: self.recipe.max_tokens - self.special_tokens], *self._after]

    @torch.inference_mode()
    def _forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """The vectors [rows, dimension] of one padded batch."""
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[self._padding] * (longest - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
        states: Tensor = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        if self.recipe.pooling == "cls":
            pooled = states[:, 0]
        else:
            weights = mask.unsqueeze(-1).to(states.dtype)
            pooled = (states * weights).sum(1) / weights.sum(1)
        return torch.nn.functional.normalize(pooled, dim=1) if self.recipe.normalise else pooled


def _model(path: Path, settings: dict[str, Any]) -> torch.nn.Module:
    """The model with all weights filled; raises ArtifactError naming missing and misshapen ones."""
    config = CONFIG_MAPPING[settings["model_type"]].from_dict(settings)
    model_class: Any = MODEL_MAPPING[type(config)]
    with redirect_stderr(StringIO()):  # its progress bar would fill log files
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=encoder_files.weights(path),
            dtype=torch.float32,
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    for kind in ("missing", "mismatched", "unexpected"):
        names = sorted(str(name) for name in report[f"{kind}_keys"])
        if named := [name for name in names if not any(part in name for part in UNUSED)]:
            raise ArtifactError(f"{path}: {kind} weights: {', '.join(named[:5])} ({len(named)} in all)")
    assert isinstance(model, torch.nn.Module)
    return model.train(False)


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Indices of texts of similar length, at most BATCH_TOKENS padded tokens in each batch."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Compute on at most `count` threads for the `with` block, in this thread of Python alone."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(count, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)
