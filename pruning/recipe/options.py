"""The stages of a recipe: their options, defaults and bounds; training stages are in `training`."""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from pruning.recipe.allocation import OWL, SEARCHED, Fisher, Search
from pruning.recipe.bounds import Bucket, Count
from pruning.recipe.fitting import Fit
from pruning.recipe.texts import WeightedText, refuse_repeated
from pruning.recipe.training import Continue, Distill, Reconstruct, Shear
from pruning.techniques import AnyTechnique
from pruning.techniques.importance import AnyImportance
from server.artifact.checkpoint.layouts import Group, Scheme, refuse_scheme


class Layerwise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="layerwise"):
    """Prune every linear layer of every block with one technique, block by block."""

    technique: AnyTechnique
    """How each layer is pruned, and to what sparsity."""
    order: Literal["block", "sequential"] = "block"
    """Whose outputs a layer is calibrated on. "block": all layers of a block see its dense activations, in one forward.
    "sequential": layers that share an input are pruned together, and the next ones see their pruned outputs; costs
    about half a forward more."""
    correction: Annotated[float, Meta(ge=0, le=1)] = 0
    """Strength of quantisation error propagation (https://arxiv.org/abs/2504.09629): how far each weight is moved,
    before it is pruned, towards the one that gives the unpruned model's outputs on the pruned model's inputs. 0 is off,
    0.5 is recommended, 1 overfits. About doubles the time, since the unpruned model runs along; gains most in
    "sequential" order."""
    objective: Literal["layer", "loss"] = "layer"
    """What a layer's error is measured by. "layer": the squares of its outputs. "loss": those squares weighed by the
    Fisher matrix of the outputs, which says how far an error there raises the next-token loss (as YAQA,
    https://arxiv.org/abs/2505.22988); for sparsegpt, admm and gptq. Costs one backward pass over
    `objective_sequences`; with 16 of them it gained nothing beyond noise (docs/results/log.md)."""
    objective_sequences: Count = 16
    """Calibration sequences that the Fisher matrices of `objective = "loss"` are estimated on."""
    allocation: OWL | Search | Fisher | None = None
    """How sparsity is distributed over blocks or matrices; without it, every matrix gets the technique's `sparsity`."""

    def __post_init__(self) -> None:
        if self.order == "sequential" and not (self.technique.observes or self.correction):
            name = self.technique.__struct_config__.tag
            raise ValueError(f'{name} uses no inputs, so order = "sequential" would change nothing: leave it out')
        if isinstance(self.allocation, OWL):
            self._check_owl(self.allocation)
        if isinstance(self.allocation, Search):
            self._check_search(self.allocation)
        if isinstance(self.allocation, Fisher) and len(self.allocation.candidates(self.technique)) < 2:
            raise ValueError("allocation has one level only: give levels or bits")
        if self.objective == "loss" and not self.technique.sees_loss:
            name = self.technique.__struct_config__.tag
            raise ValueError(f'{name} weighs no output errors: objective = "loss" is for sparsegpt, admm and gptq')

    @property
    def sparsities(self) -> tuple[float | str, ...]:
        """Every sparsity that a matrix may get."""
        match self.allocation:
            case Search():
                return (self.technique.sparsity, *self.allocation.levels)
            case Fisher():
                return tuple(candidate.sparsity for candidate in self.allocation.candidates(self.technique))
        return (self.technique.sparsity,)

    def _check_owl(self, allocation: OWL) -> None:
        sparsity = self.technique.sparsity
        if isinstance(sparsity, str):
            raise ValueError(f'allocation needs a fraction such as 0.6, and sparsity is "{sparsity}"')
        if 2 * allocation.spread >= min(sparsity, 1 - sparsity):
            raise ValueError(f"twice the spread {allocation.spread} must be below both sparsity and 1 - sparsity")

    def _check_search(self, allocation: Search) -> None:
        sparsity = self.technique.sparsity
        if len({isinstance(level, str) for level in (sparsity, *allocation.levels)}) > 1:
            raise ValueError(f'sparsity {sparsity} and the levels must all be fractions or all "k:{SEARCHED}"')
        if sparsity not in allocation.ordered():
            raise ValueError(f"sparsity {sparsity} must be one of the levels, since it is the mean over the blocks")
        if self.order != "block":
            raise ValueError('a search prunes on the outputs of dense layers, so order must be "block"')


class Depth(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="depth"):
    """Remove whole blocks, those first that the model needs least."""

    remove: Count
    """Number of blocks to remove."""
    by: Literal["influence", "angle", "perplexity"] = "influence"
    """Measure of need. "influence": how much the block changes the hidden state (ShortGPT,
    https://arxiv.org/abs/2403.03853). "angle": how far a run of consecutive blocks turns it; the run with the smallest
    angle goes (https://arxiv.org/abs/2403.17887). "perplexity": try the model without each block, remove the best, and
    repeat (SLEB, https://arxiv.org/abs/2402.09025); slowest."""
    sequences: Count = 8
    """Calibration sequences for `by = "perplexity"`; the other measures use all of them."""


class Width(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="width"):
    """Remove feed-forward units and KV groups, the same number from every block."""

    importance: AnyImportance
    """How units are scored; the lowest scores go."""
    ffn: Annotated[float, Meta(gt=0, lt=1)] | Annotated[int, Meta(ge=32, multiple_of=32)] | None = None
    """Feed-forward units: the fraction to remove, rounded to a multiple of 32, or the number to keep, a multiple of
    32."""
    kv_groups: Annotated[int, Meta(ge=0)] = 0
    """KV groups to remove, each with all its query heads."""
    plan: dict[str, Literal["colwise", "rowwise"]] = {}
    """Tensor-parallel plan, for an architecture that transformers has none for: by its name within a block, whether a
    layer's outputs ("colwise") or inputs ("rowwise") are the units."""

    def __post_init__(self) -> None:
        if self.ffn is None and not self.kv_groups:
            raise ValueError("nothing to remove: give ffn, kv_groups or both")


class Vocabulary(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="vocabulary"):
    """Remove the tokens that a text misses least and rewrite the tokenizer.

    Later stages work on the remaining tokens.
    """

    keep: Annotated[int, Meta(ge=64, multiple_of=64)] | None = None
    """Maximum number of tokens to keep: those whose removal would make the text longest; without it, every token that
    the text uses."""
    source: str | None = None
    """The text to count tokens in, as in `calibration.source`; default: the calibration's."""
    buckets: Annotated[tuple[Bucket, ...], Meta(min_length=1)] | None = None
    """Which tenths of its documents, as in `calibration.buckets`; default: the calibration's."""
    sources: tuple[WeightedText, ...] = ()
    """Several texts instead of `source`, counted by weight; default: the calibration's."""
    general: Annotated[float, Meta(ge=0, le=100)] = 0
    """Weight of general use beside all texts together, estimated by the order of the tokenizer's merges: what a small
    text never says, but its users may. 1 halves the loss on other kinds of English text."""
    fit: Fit | None = None
    """Train the model to read and write what removed tokens fall into; without it, text with removed tokens is far less
    likely to the model."""

    def __post_init__(self) -> None:
        if self.sources and (self.source or self.buckets):
            raise ValueError("give either source and buckets or sources, not both")
        refuse_repeated(self.sources)

    @property
    def named_sources(self) -> tuple[str, ...]:
        """The sources of the stage's own texts; empty for the calibration's."""
        own = tuple(text.source for text in self.sources) or ((self.source,) if self.source else ())
        return own + (self.fit.named_sources if self.fit else ())


class AWQ(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="awq"):
    """Quantise every linear layer of every block after scaling up the input columns with large activations.

    Lin et al., AWQ, https://arxiv.org/abs/2306.00978.
    """

    bits: Literal[2, 3, 4, 5, 6, 8] = 4
    """Bits of a code; 2 are stored in 3."""
    group: Group = 64
    """Input columns that share one scale in each row."""
    scheme: Scheme = "symmetric"
    """"symmetric": zero stays zero. "asymmetric": a minimum beside each scale; more accurate, 16 bits more for each
    group, at most 6 bits, and not for pruned weights."""

    def __post_init__(self) -> None:
        refuse_scheme(self.scheme, self.bits)


class Round(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="round"):
    """Quantise matrices to the nearest code, each group with the scale of least squared error; the head by GPTQ."""

    bits: Literal[2, 3, 4, 5, 6, 8] = 8
    """Bits of a code; 2 are stored in 3."""
    group: Group = 64
    """Columns that share one scale in each row."""
    what: Literal["embeddings", "blocks"] = "embeddings"
    """"embeddings": the embeddings and the head, which other stages leave at 16 bits. "blocks": the linear layers."""
    scheme: Scheme = "symmetric"
    """"symmetric": zero stays zero. "asymmetric": a minimum beside each scale; more accurate, 16 bits more for each
    group, at most 6 bits, and not for pruned weights."""
    head: Literal["nearest", "gptq"] = "nearest"
    """"gptq": the head, with the embeddings if they are tied, by what it reads of the calibration; in 4 bits a third of
    the loss. "nearest": as the rest, without calibration."""

    def __post_init__(self) -> None:
        refuse_scheme(self.scheme, self.bits)
        if self.head == "gptq" and self.what == "blocks":
            raise ValueError('head = "gptq" rounds the head, which what = "blocks" leaves out: use what = "embeddings"')


Stage = Layerwise | Depth | Width | Vocabulary | AWQ | Round | Distill | Reconstruct | Shear | Continue
