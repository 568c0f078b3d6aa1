"""Runs any causal language model of transformers over the slot cache.

Loading fails unless every weight is filled, and unless logits over the cache equal the model's own."""

import inspect
from collections.abc import Sequence as Ids
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AttentionInterface, PreTrainedConfig
from transformers import PreTrainedModel as Model

from server.artifact.checkpoint.reader import Artifact
from server.engine.batch import Batch, Chunk
from server.engine.choice import Choice
from server.engine.runners.semi_structured import install
from server.engine.runners.slot_cache import SlotCache, Step, slot_attention
from server.engine.sequence import Sampling, Sequence
from server.errors import ArtifactError, ConfigError

ATTENTION = "secateur_slots"
KNOWN_LAYERS = {"full_attention", "sliding_attention"}


def load(artifact: Artifact, *, dtype: torch.dtype | None = None, device: torch.device | None = None) -> Model:
    """Load an artifact's model; raises ArtifactError naming weights that are missing, unexpected or misshapen."""
    device = device or choose_device()
    dtype = dtype or choose_dtype(device)[0]
    config = _config(artifact.config)
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with redirect_stderr(StringIO()):  # its progress bar would fill log files
        model, report = model_class.from_pretrained(
            None,
            config=config,
            state_dict=dict(artifact.tensors()),
            dtype=dtype,
            attn_implementation="eager",
            ignore_mismatched_sizes=True,  # reported below, by name
            output_loading_info=True,
        )
    for kind in ("missing", "unexpected", "mismatched"):
        if names := sorted(str(name) for name in report[f"{kind}_keys"]):
            raise ArtifactError(f"{artifact.path}: {kind} weights: {', '.join(names[:5])} ({len(names)} in all).")
    assert isinstance(model, Model)
    torch.nn.Module.to(model, device)
    model.train(False)
    return model


def choose_device() -> torch.device:
    """The first CUDA device, else the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def choose_dtype(device: torch.device) -> tuple[torch.dtype, Choice]:
    """bfloat16 if the hardware multiplies it, else float32."""
    if device.type == "cuda":
        return torch.bfloat16, Choice("dtype", "bfloat16", "CUDA multiplies bfloat16 faster than float32")
    capabilities = torch.cpu.get_capabilities()
    for name in ("amx_bf16", "avx512_bf16"):
        if capabilities.get(name):
            return torch.bfloat16, Choice(
                "dtype", "bfloat16", f"this CPU has {name}: half the bytes of float32 to read"
            )
    return torch.float32, Choice("dtype", "float32", "this CPU has no bfloat16 instructions (avx512_bf16, amx_bf16)")


class TransformersRunner:
    """Computes batches with a loaded model and a preallocated cache of `slots` x `context` positions."""

    def __init__(self, model: Model, *, slots: int, context: int) -> None:
        _check(model, context)
        AttentionInterface.register(ATTENTION, slot_attention)
        self._model = model
        self._cache = SlotCache(slots, context)
        self._keeps_rows = "logits_to_keep" in inspect.signature(model.forward).parameters
        self.exact_rows = False  # torch's products depend on how many rows there are
        self.vocabulary = int(model.config.get_text_config().vocab_size)
        self.choices: tuple[Choice, ...] = (
            Choice("runner", "transformers", f"{type(model).__name__} on {model.device}"),
            _explain_dtype(model),
        )
        expected = self._own_logits()
        model.set_attn_implementation(ATTENTION)
        self.choices += install(model)
        self._prove(expected)

    def forward(self, batch: Batch) -> Tensor:
        """See `Runner`."""
        return self.last(batch, batch.wanted)

    @torch.inference_mode()
    def last(self, batch: Batch, counts: Ids[int]) -> Tensor:
        """See `Scoring`."""
        device = self._model.device
        ids = [token for chunk in batch.chunks for token in chunk.ids]
        positions = [place for chunk in batch.chunks for place in range(chunk.start, chunk.end)]
        rows = torch.tensor(_last_rows(batch, counts), dtype=torch.long, device=device)
        keep = {"logits_to_keep": rows} if self._keeps_rows else {}
        logits: Tensor = self._model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.tensor([positions], device=device),
            use_cache=False,
            step=Step(batch, self._cache, device),
            **keep,
        ).logits[0]
        return (logits if self._keeps_rows else logits[rows]).float().cpu()

    @torch.inference_mode()
    def _own_logits(self) -> Tensor:
        """The untouched model's logits after the probe."""
        ids = torch.tensor([self._probe()], device=self._model.device)
        logits: Tensor = self._model(ids, use_cache=False).logits[0, -1]
        return logits.float().cpu()

    def _prove(self, expected: Tensor) -> None:
        """Raise ArtifactError unless the probe, computed in two chunks and a last id, has the `expected` logits."""
        ids = self._probe()
        sequence = Sequence("", ids, Sampling())
        last = len(ids) - 1
        for start, end in ((0, last // 2), (last // 2, last), (last, last + 1)):
            chunk = Chunk(sequence, self._cache.slots - 1, start, ids[start:end], end > last)
            logits = self.forward(Batch((chunk,))) if start < end else None
        assert logits is not None
        tolerance = 1e-3 if self._model.dtype == torch.float32 else 0.1
        if not bool((logits[0] - expected).abs().max() <= tolerance * expected.abs().max()):
            name = type(self._model).__name__
            raise ArtifactError(f"{name} computes other logits over this server's cache; it cannot run here.")

    def _probe(self) -> tuple[int, ...]:
        return tuple(token % self.vocabulary for token in range(11, 11 + min(8, self._cache.size.context)))


def _config(values: dict[str, Any]) -> PreTrainedConfig:
    kind = str(values.get("model_type"))
    if kind not in CONFIG_MAPPING or CONFIG_MAPPING[kind] not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ArtifactError(f"config.json: model_type is {kind!r}, which is not a known causal language model.")
    try:
        config = CONFIG_MAPPING[kind].from_dict(values)
    except Exception as error:  # each configuration class raises its own errors
        raise ArtifactError(f"config.json: {error}") from None
    assert isinstance(config, PreTrainedConfig)
    return config


def _check(model: Model, context: int) -> None:
    """Refuse models that the slot cache cannot compute."""
    config = model.config.get_text_config()
    if not model._supports_attention_backend:
        raise ArtifactError(f"{type(model).__name__} does not support custom attention; this server cannot run it.")
    if unknown := set(getattr(config, "layer_types", None) or ()) - KNOWN_LAYERS:
        raise ArtifactError(
            f"{type(model).__name__} has layers of type {', '.join(sorted(unknown))}; it cannot run here."
        )
    limit = getattr(config, "max_position_embeddings", None)
    if limit and context > limit:
        raise ConfigError(f"context is {context}; the model supports at most {limit} positions.")
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        raise ArtifactError(f"rope_type {rope['rope_type']} depends on the text's length; its keys cannot be cached.")


def _explain_dtype(model: Model) -> Choice:
    dtype, choice = choose_dtype(model.device)
    if model.dtype == dtype:
        return choice
    return Choice("dtype", str(model.dtype).removeprefix("torch."), "it was asked for")


def _last_rows(batch: Batch, counts: Ids[int]) -> list[int]:
    """Indices of the last `counts[i]` ids of each chunk in the row of ids."""
    rows: list[int] = []
    end = 0
    for chunk, count in zip(batch.chunks, counts, strict=True):
        end += len(chunk.ids)
        rows += range(end - count, end)
    return rows
