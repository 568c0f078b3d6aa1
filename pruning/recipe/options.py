"""The stages that a recipe can have: what each is told, its defaults and its bounds."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pruning.recipe.allocation import OWL, SEARCHED, Search
from pruning.recipe.bounds import Bucket, Count
from pruning.techniques import AnyTechnique
from pruning.techniques.importance import AnyImportance
from server.artifact.checkpoint.layouts import Group


class Layerwise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="layerwise"):
    """Prune every linear layer of every block with one technique."""

    technique: AnyTechnique
    order: Literal["block", "sequential"] = "block"
    """"block" observes the dense block once; "sequential" lets each group of linears that share an input see the groups
    before it pruned, for about half a forward more."""
    correction: Annotated[float, Meta(ge=0, le=1)] = 0
    """How far each weight is moved, before it is pruned, towards one that gives the unpruned model's outputs on the
    pruned model's inputs: not at all, or up to wholly, which overfits; take 0.5. The unpruned model runs along, which
    about doubles the time. It gains most in "sequential" order."""
    allocation: OWL | Search | None = None
    """How the sparsity differs between blocks; None: not at all."""

    def __post_init__(self) -> None:
        if self.order == "sequential" and not (self.technique.needs or self.correction):
            name = self.technique.__struct_config__.tag
            raise ValueError(f'{name} looks at no inputs, so order = "sequential" would change nothing: leave it out')
        if isinstance(self.allocation, OWL):
            self._check_owl(self.allocation)
        if isinstance(self.allocation, Search):
            self._check_search(self.allocation)

    def _check_owl(self, allocation: OWL) -> None:
        sparsity = self.technique.sparsity
        if isinstance(sparsity, str):
            raise ValueError(f'allocation needs a fraction such as 0.6, and sparsity is "{sparsity}"')
        if 2 * allocation.spread >= min(sparsity, 1 - sparsity):
            raise ValueError(f"twice the spread {allocation.spread} must be less than sparsity and than 1 - sparsity")

    def _check_search(self, allocation: Search) -> None:
        sparsity = self.technique.sparsity
        if len({isinstance(level, str) for level in (sparsity, *allocation.levels)}) > 1:
            raise ValueError(f"sparsity {sparsity} and the levels must be all fractions or all k:{SEARCHED}")
        if sparsity not in allocation.ordered():
            raise ValueError(f"sparsity {sparsity} must be among the levels, since it is their mean over the blocks")
        if self.order != "block":
            raise ValueError('a search prunes on what dense layers give, so order must be "block"')


class Depth(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="depth"):
    """Remove the blocks that are missed least."""

    remove: Count
    """Number of blocks to remove."""
    by: Literal["influence", "angle", "perplexity"] = "influence"
    """How much each changes the state, how far a run of them turns it, or perplexity without each in turn."""
    sequences: Count = 8
    """Calibration sequences on which perplexity is tried; the other measures take all."""


class Width(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="width"):
    """Remove feed-forward units and whole groups of attention heads, the same number of each from every block."""

    importance: AnyImportance
    ffn: Annotated[float, Meta(gt=0, lt=1)] | Annotated[int, Meta(ge=32, multiple_of=32)] | None = None
    """The fraction of feed-forward units to remove, rounded to a multiple of 32; or the multiple of 32 that stays."""
    kv_groups: Annotated[int, Meta(ge=0)] = 0
    """KV groups to remove, with all their heads."""
    plan: dict[str, Literal["colwise", "rowwise"]] = {}
    """The layers by their names within a block, where the architecture has no tensor-parallel plan."""

    def __post_init__(self) -> None:
        if self.ffn is None and not self.kv_groups:
            raise ValueError("neither ffn nor kv_groups says what to remove")


class Vocabulary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="vocabulary"):
    """Remove the tokens that a text does not use, and rewrite the tokenizer; the last stage of a recipe."""

    keep: Annotated[int, Meta(ge=64, multiple_of=64)] | None = None
    """At most so many tokens stay, the most frequent; without it, all that the text uses."""
    source: str | None = None
    """The text; without it, that of the calibration."""
    buckets: Annotated[tuple[Bucket, ...], Meta(min_length=1)] | None = None
    """Which tenths of the texts; without it, those of the calibration."""

    @property
    def sources(self) -> tuple[str | None, ...]:
        """The one text; None stands for that of the calibration."""
        return (self.source,)


class AWQ(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="awq"):
    """Scale the input columns that see large activations, and round every linear layer of every block."""

    bits: Literal[2, 3, 4, 8] = 4
    """Codes of 2 and 3 bits are for comparison: they are stored in 4."""
    group: Group = 64
    """Input columns that share one scale in each row."""
    scheme: Literal["symmetric"] = "symmetric"


class Round(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="round"):
    """Round matrices to the nearest codes, with the scale that leaves each group the least squared error."""

    bits: Literal[2, 3, 4, 8] = 8
    """Codes of 2 and 3 bits are for comparison: they are stored in 4."""
    group: Group = 64
    """Columns that share one scale in each row."""
    what: Literal["embeddings", "blocks"] = "embeddings"
    """The embeddings and the head, which other stages leave at 16 bits; or the linear layers of the blocks."""


class LoRA(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Adapters of `rank`, scaled by `alpha` / `rank`, in place of the weights themselves."""

    rank: Count = 8
    alpha: Count = 16


class Quantise(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Codes that the linear layers of the blocks are trained to have."""

    bits: Literal[2, 3, 4, 8] = 4
    """Codes of 2 and 3 bits are for comparison: they are stored in 4."""
    group: Group = 64
    """Input columns that share one scale in each row."""


class Training(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all training of the whole model is told."""

    tokens: Count
    """The budget; it is spent in whole batches, at least one."""
    length: Annotated[int, Meta(ge=2)] = 256
    """Tokens in each sequence."""
    batch: Count = 4
    """Sequences in each step."""
    learning_rate: Annotated[float, Meta(gt=0)] = 1e-4
    warmup: Annotated[float, Meta(ge=0, le=1)] = 0.05
    """The fraction of the steps in which the learning rate rises; then it falls along a cosine."""
    interval: Count = 10
    """Steps between two scores on the held-out texts; a killed run repeats no more."""
    held_out: Count = 16
    """Sequences of texts that are never trained on."""
    seed: int = 0
    pretraining_tokens: Count | None = None
    """Tokens that the base was trained on, for the record."""

    @property
    def steps(self) -> int:
        """Batches in the budget."""
        return max(self.tokens // (self.batch * self.length), 1)

    @property
    def sources(self) -> tuple[str | None, ...]:
        """Every text that is trained on; None stands for that of the calibration."""
        raise NotImplementedError


class TextTraining(Training, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Training on one text."""

    source: str | None = None
    """The text; without it, that of the calibration."""
    buckets: Annotated[tuple[Bucket, ...], Meta(min_length=1)] | None = None
    """Which tenths of the texts; without it, those of the calibration."""

    @property
    def sources(self) -> tuple[str | None, ...]:
        """The one text."""
        return (self.source,)


class Distill(TextTraining, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="distill"):
    """Train what is left towards the base's own predictions; pruned weights stay exactly zero."""

    temperature: Annotated[float, Meta(gt=0)] = 1.0
    embeddings: bool = False
    """Whether embeddings and head are trained too."""
    lora: LoRA | None = None
    quantise: Quantise | None = None
    """Quantisation-aware: weights are trained behind codes and scales, which are what is scored and stored. A model
    that is quantised starts from its own; one that is not is rounded first, and never comes out unrounded."""

    def __post_init__(self) -> None:
        if self.lora and self.quantise:
            raise ValueError("lora trains beside weights that stay as they are, and quantise changes them: use one")
        if self.lora and self.embeddings:
            raise ValueError("lora trains adapters of the blocks, so embeddings = true has nothing to train: use one")


class Domain(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Texts of one kind."""

    name: str
    source: str | None = None
    """The text; without it, that of the calibration."""
    buckets: Annotated[tuple[Bucket, ...], Meta(min_length=1)] | None = None
    """Which tenths of the texts; without it, those of the calibration."""
    weight: Annotated[float, Meta(gt=0)] = 1.0
    """Its share of the batches at first, and of the held-out score, beside the other domains'."""


class Continue(Training, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="continue"):
    """Go on with pre-training on several domains, each read the more the further its loss is above the base's."""

    domains: Annotated[tuple[Domain, ...], Meta(min_length=1)]
    """Their shares change at every `interval`."""
    embeddings: bool = True
    """Whether embeddings and head are trained too."""

    @property
    def sources(self) -> tuple[str | None, ...]:
        """The text of each domain."""
        return tuple(domain.source for domain in self.domains)

    def __post_init__(self) -> None:
        names = [domain.name for domain in self.domains]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two domains are named {twice[0]}")


class Shear(TextTraining, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="kind", tag="shear"):
    """Learn which layers, hidden dimensions, KV groups and feed-forward units stay, while the weights are trained."""

    layers: Count | None = None
    """How many stay; what is not given is not pruned."""
    hidden: Count | None = None
    kv_groups: Count | None = None
    """In each layer, with all their heads of queries."""
    ffn: Annotated[int, Meta(ge=32, multiple_of=32)] | None = None
    """In each layer."""
    warmup: Annotated[float, Meta(ge=0, le=1)] = 0.1
    target_warmup: Annotated[float, Meta(ge=0, le=1)] = 0.2
    """The fraction of the steps in which the size that is asked for goes from the whole model's to the target."""
    mask_learning_rate: Annotated[float, Meta(gt=0)] = 1.0
    """Of the masks, and of the multipliers, which go up; as in the paper. With less, some hundred steps may not be
    enough to come to the target."""
    plan: dict[str, Literal["colwise", "rowwise"]] = {}
    """The layers by their names within a block, where the architecture has no tensor-parallel plan."""

    @property
    def target(self) -> dict[str, int]:
        """How much stays of each kind that is pruned."""
        sizes = {"layers": self.layers, "hidden": self.hidden, "kv_groups": self.kv_groups, "ffn": self.ffn}
        return {kind: size for kind, size in sizes.items() if size is not None}

    def __post_init__(self) -> None:
        if not self.target:
            raise ValueError("none of layers, hidden, kv_groups and ffn says what is to stay")


class Reconstruct(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="reconstruct"):
    """Train each block alone towards the base's states after it; one block in memory, pruned weights stay zero."""

    unit: Literal["block", "halves"] = "block"
    """What is trained at once: a whole block; or its attention, towards the base's state between attention and MLP, and
    then its MLP, towards the state after the block. Halves take two runs of `steps`, each over fewer weights."""
    steps: Count = 60
    """Steps for each unit."""
    batch: Count = 2
    """Sequences of the calibration in each step."""
    learning_rate: Annotated[float, Meta(gt=0)] = 2e-3
    warmup: Annotated[float, Meta(ge=0, le=1)] = 0.05
    interval: Count = 10
    """Steps between two scores on the held-out sequences."""
    held_out: Count = 8
    """The last sequences of the calibration, which are never trained on."""
    seed: int = 0


Stage = Layerwise | Depth | Width | Vocabulary | AWQ | Round | Distill | Reconstruct | Shear | Continue
