"""The stages of a recipe that train: their options, defaults and bounds."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pruning.recipe.bounds import Bucket, Count
from pruning.recipe.texts import WeightedText, refuse_repeated
from server.artifact.checkpoint.layouts import Group, Scheme, refuse_scheme


class LoRA(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Train low-rank adapters and keep the weights frozen; the adapters are merged at the end.

    Hu et al., LoRA, https://arxiv.org/abs/2106.09685.
    """

    rank: Count = 8
    """Rank of the adapters."""
    alpha: Count = 16
    """Adapters are scaled by `alpha` / `rank`."""


class Quantise(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The codes of quantisation-aware training, for the linear layers of the blocks."""

    bits: Literal[2, 3, 4, 5, 6, 8] = 4
    """Bits of a code; 2 are stored in 3."""
    group: Group = 64
    """Input columns that share one scale in each row."""
    scheme: Scheme = "symmetric"
    """"symmetric": zero stays zero. "asymmetric": a minimum beside each scale; at most 6 bits, no pruned weights."""

    def __post_init__(self) -> None:
        refuse_scheme(self.scheme, self.bits)


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of every stage that trains the whole model, by AdamW."""

    tokens: Count
    """Token budget, rounded down to whole batches, at least one."""
    length: Annotated[int, Meta(ge=2)] = 256
    """Tokens in each sequence."""
    batch: Count = 4
    """Sequences in each step."""
    learning_rate: Annotated[float, Meta(gt=0)] = 1e-4
    """Peak learning rate."""
    warmup: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """Fraction of the steps in which the learning rate rises linearly; afterwards it falls along a cosine."""
    interval: Count = 10
    """Steps between two evaluations on the held-out texts, each of which writes a checkpoint: the most work that a
    killed run repeats."""
    held_out: Count = 16
    """Sequences from texts that are never trained on. The weights that score best on them are the result, except in
    `shear`, which keeps the last."""
    seed: int = 0
    """Seeds the order of the texts and every other random choice of the stage."""
    pretraining_tokens: Count | None = None
    """Tokens that the base was pre-trained on; recorded beside the budget and used for nothing else."""

    @property
    def steps(self) -> int:
        """Number of batches in the budget."""
        return max(self.tokens // (self.batch * self.length), 1)

    @property
    def named_sources(self) -> tuple[str, ...]:
        """Every source that is trained on and that the stage names itself."""
        raise NotImplementedError


class TextTraining(Training, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Training on one source of texts, or on several mixed by weight."""

    source: str | None = None
    """The texts, as in `calibration.source`; default: the calibration's."""
    buckets: Annotated[tuple[Bucket, ...], Meta(min_length=1)] | None = None
    """Which tenths of its documents, as in `calibration.buckets`; default: the calibration's."""
    sources: tuple[WeightedText, ...] = ()
    """Several texts instead of `source`, mixed by weight; default: the calibration's."""

    def __post_init__(self) -> None:
        if self.sources and (self.source or self.buckets):
            raise ValueError("give either source and buckets or sources, not both")
        refuse_repeated(self.sources)

    @property
    def named_sources(self) -> tuple[str, ...]:
        """The sources of the stage's own texts; empty for the calibration's."""
        return tuple(text.source for text in self.sources) or ((self.source,) if self.source else ())


class Distill(TextTraining, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="distill"):
    """Distil: train the pruned model on the base's next-token distributions; pruned weights stay exactly zero.

    Hinton et al., https://arxiv.org/abs/1503.02531.
    """

    temperature: Annotated[float, Meta(gt=0)] = 1.0
    """Softmax temperature of both distributions; above 1, unlikely tokens weigh more."""
    embeddings: bool = False
    """Whether embeddings and head are trained too."""
    lora: LoRA | None = None
    """Train adapters instead of the weights; without it, all weights of the blocks are trained."""
    quantise: Quantise | Literal["kept"] | None = None
    """Quantisation-aware training: master weights are trained behind codes and scales, which are what is evaluated and
    stored. A quantised model starts from its own codes, any other is rounded first; the result is always quantised.
    "kept": each matrix keeps its own bits, groups and pattern, as after `allocation = { name = "fisher" }` of `gptq` or
    in a GGUF file; all of the blocks must be quantised."""
    states: Annotated[float, Meta(ge=0)] = 0
    """Weight of a second loss beside the divergence: how far the hidden states after each block are from the base's,
    squared and relative to them, as SquareHead (https://arxiv.org/abs/2310.06927). 0 is off."""
    memory: Literal["plenty", "little", "sharded"] = "plenty"
    """"plenty": float32 master weights and moments, about 30 bytes a parameter with the base. "little": about 8, for
    models above 0.7 billion parameters: the stored 16-bit weights are trained by stochastic rounding with moments of 8
    bits, activations within blocks are computed again, and the base stays in its file. Slower by a third forward.
    "sharded": as "plenty", divided among the processes of `--processes` or torchrun (FSDP2), for models above the
    memory of one GPU or machine."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.memory != "plenty" and (self.lora or self.quantise):
            raise ValueError(f'memory = "{self.memory}" trains the 16-bit weights: leave out lora and quantise')
        if self.lora and self.quantise:
            raise ValueError("lora keeps the weights frozen, and quantise trains them: use one")
        if self.lora and self.embeddings:
            raise ValueError("lora trains adapters of the blocks only, so embeddings = true has no effect: use one")


class Domain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of text in continued pre-training."""

    name: str
    """Name in logs and in the lineage; unique in the stage."""
    source: str | None = None
    """The texts, as in `calibration.source`; default: the calibration's."""
    buckets: Annotated[tuple[Bucket, ...], Meta(min_length=1)] | None = None
    """Which tenths of its documents, as in `calibration.buckets`; default: the calibration's."""
    weight: Annotated[float, Meta(gt=0)] = 1.0
    """Relative share of the first batches, and of the held-out loss throughout."""


class Continue(Training, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="continue"):
    """Continue pre-training on several domains with dynamic batch loading.

    The further a domain's loss is above the base's, the larger its share: Xia et al., Sheared LLaMA,
    https://arxiv.org/abs/2310.06694, section 2.2.
    """

    domains: Annotated[tuple[Domain, ...], Meta(min_length=1)]
    """What to train on; the shares are adjusted every `interval` steps."""
    embeddings: bool = True
    """Whether embeddings and head are trained too."""

    @property
    def named_sources(self) -> tuple[str, ...]:
        """The sources that domains name; the others train on the calibration's."""
        return tuple(domain.source for domain in self.domains if domain.source)

    def __post_init__(self) -> None:
        names = [domain.name for domain in self.domains]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two domains are named {twice[0]}: names must differ")


class Shear(TextTraining, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="shear"):
    """Prune to a target shape by training masks and weights together, then cut what the masks remove.

    Xia et al., Sheared LLaMA, https://arxiv.org/abs/2310.06694, section 2.1.
    """

    layers: Count | None = None
    """Layers to keep; without it, all."""
    hidden: Count | None = None
    """Hidden dimensions to keep; without it, all."""
    kv_groups: Count | None = None
    """KV groups to keep in each layer, each with all its query heads; without it, all."""
    ffn: Annotated[int, Meta(ge=32, multiple_of=32)] | None = None
    """Feed-forward units to keep in each layer; without it, all."""
    warmup: Annotated[float, Meta(ge=0, le=1)] = 0.1
    """Fraction of the steps in which the learning rate rises linearly; afterwards it falls along a cosine."""
    target_warmup: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """Fraction of the steps in which the constraint moves linearly from the whole model's shape to the target."""
    mask_learning_rate: Annotated[float, Meta(gt=0)] = 1.0
    """Learning rate of the masks and of the Lagrange multipliers. The default is the paper's; with a lower one, a few
    hundred steps may not reach the target."""
    plan: dict[str, Literal["colwise", "rowwise"]] = {}
    """Tensor-parallel plan, for an architecture that transformers has none for: by its name within a block, whether a
    layer's outputs ("colwise") or inputs ("rowwise") are the units."""

    @property
    def target(self) -> dict[str, int]:
        """The number to keep, by the kind of structure; kinds that are not pruned are absent."""
        sizes = {"layers": self.layers, "hidden": self.hidden, "kv_groups": self.kv_groups, "ffn": self.ffn}
        return {kind: size for kind, size in sizes.items() if size is not None}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.target:
            raise ValueError("nothing to prune: give at least one of layers, hidden, kv_groups and ffn")


class Reconstruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="reconstruct"):
    """Train each block alone towards the base's hidden states after it; pruned weights stay exactly zero.

    One block is in memory at a time: A Free Lunch in LLM Compression, https://arxiv.org/abs/2510.14444.
    """

    unit: Literal["block", "halves"] = "block"
    """What is trained at once. "block": a whole block. "halves": first its attention, towards the base's state between
    attention and MLP, then its MLP, towards the state after the block; takes two runs of `steps`."""
    steps: Count = 60
    """Maximum steps for each unit; training stops early once the held-out error no longer falls."""
    batch: Count = 2
    """Calibration sequences in each step."""
    learning_rate: Annotated[float, Meta(gt=0)] = 2e-3
    """Peak learning rate."""
    warmup: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """Fraction of the steps in which the learning rate rises linearly; afterwards it falls along a cosine."""
    interval: Count = 10
    """Steps between two evaluations on the held-out sequences."""
    held_out: Count = 8
    """Number of calibration sequences, the last ones, that are never trained on, to choose the best step by."""
    seed: int = 0
    """Decides the order of the sequences."""
