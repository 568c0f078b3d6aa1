"""Statistics of a pass: InputNorm, InputMean and Gram of a linear layer's inputs, and BlockInfluence of a block.

Each keeps running sums only, so memory does not grow with the data; layers that share an input share them.
"""

import logging
from collections.abc import Callable, Mapping
from copy import copy
from typing import NamedTuple, TypeVar, cast

import torch
from torch import Tensor

from pruning.errors import ModelRefused

logger = logging.getLogger(__name__)

MAX_DAMPING = 10.0
"""The damping at which a Gram matrix that cannot be inverted is refused."""
STRIPE = 384
"""Rows of the Gram matrix computed at once, from the diagonal on; the lower triangle follows by symmetry."""


Add = Callable[[Tensor], None]
"""Replaces a tensor, in place, by its sum over the processes that share out the sequences."""


class Statistic:
    """Accumulates over the inputs of one linear layer with `columns` input features."""

    layer = "a layer"
    """The first layer with these inputs, for messages."""

    def __init__(self, columns: int) -> None:
        raise NotImplementedError

    def update(self, inputs: Tensor) -> None:
        """Take in one batch of inputs [..., tokens, columns]."""
        raise NotImplementedError

    def combine(self, add: Add) -> None:
        """Replace the running sums and counts by those over all processes."""
        for value in vars(self).values():
            if isinstance(value, Tensor):
                add(value)
        for name in ("_sequences", "_tokens"):
            if hasattr(self, name):
                count = torch.tensor([getattr(self, name)], dtype=torch.float64)
                add(count)
                setattr(self, name, int(count))


class InputNorm(Statistic):
    """The norm of each input feature: sqrt(mean over sequences of the sum over tokens of x^2)."""

    def __init__(self, columns: int) -> None:
        self._squares = torch.zeros(columns)
        self._sequences = self._tokens = 0

    def update(self, inputs: Tensor) -> None:
        """Take in one batch of inputs [..., tokens, columns]."""
        rows = inputs.flatten(0, -2)  # [B * T, columns]
        self._squares += rows.square().sum(dim=0)
        self._sequences += inputs.shape[:-2].numel()
        self._tokens += len(rows)

    @property
    def value(self) -> Tensor:
        """The norms [columns], float32; raises ModelRefused where the inputs were not finite."""
        return (_finite(self._squares) / self._sequences).sqrt()

    @property
    def root_mean_square(self) -> Tensor:
        """The norms per token [columns], comparable between layers that see sequences and layers that see tokens."""
        return (_finite(self._squares) / self._tokens).sqrt()


class InputMean(Statistic):
    """Mean and variance of each input feature over all tokens, accumulated in float64."""

    def __init__(self, columns: int) -> None:
        self._sums = torch.zeros(columns, dtype=torch.float64)
        self._squares = torch.zeros(columns, dtype=torch.float64)
        self._tokens = 0

    def update(self, inputs: Tensor) -> None:
        """Take in one batch of inputs [..., tokens, columns]."""
        rows = inputs.flatten(0, -2).double()
        self._sums += rows.sum(dim=0)
        self._squares += rows.square().sum(dim=0)
        self._tokens += len(rows)

    @property
    def mean(self) -> Tensor:
        """The means [columns], float64; raises ModelRefused where the inputs were not finite."""
        _finite(self._squares)
        return self._sums / self._tokens

    @property
    def variance(self) -> Tensor:
        """The variances [columns], float64; raises ModelRefused where the inputs were not finite."""
        return (_finite(self._squares) / self._tokens - self.mean.square()).clamp_min(0)


class Spectrum(NamedTuple):
    """A normalised Gram matrix plus damping, and its eigendecomposition `vectors` diag(`values`) `vectors`^T."""

    scale: Tensor
    """The norm of each feature, sqrt(H_jj), [columns]; 1 where it is 0."""
    matrix: Tensor
    """[columns, columns]."""
    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, gram: Tensor, damping: float) -> "Spectrum":
        """The spectrum of `gram` [columns, columns], which it overwrites: G_ij / sqrt(G_ii G_jj) + damping * I."""
        diagonal = gram.diagonal()
        diagonal[diagonal == 0] = 1
        scale = diagonal.sqrt()
        gram.div_(scale).div_(scale[:, None])
        values, vectors = torch.linalg.eigh(gram)
        gram.diagonal().add_(damping)
        return cls(scale, gram, values.clamp_min(0) + damping, vectors)


class Gram(Statistic):
    """H = (2 / n) sum over the n sequences of X^T X, [columns, columns], accumulated in float32."""

    def __init__(self, columns: int) -> None:
        self._sum = torch.zeros(columns, columns)  # upper triangle; zero below the stripes
        self._sequences = self._tokens = 0
        self._factors: dict[float, Tensor] = {}
        self._spectra: dict[float, Spectrum] = {}

    def update(self, inputs: Tensor) -> None:
        """Take in one batch of inputs [..., tokens, columns]."""
        rows = inputs.flatten(0, -2)  # [B * T, columns]
        for start in range(0, len(self._sum), STRIPE):
            stripe = slice(start, start + STRIPE)
            self._sum[stripe, start:].addmm_(rows[:, stripe].T, rows[:, start:])
        self._sequences += inputs.shape[:-2].numel()
        self._tokens += len(rows)
        self._factors.clear()
        self._spectra.clear()

    @property
    def value(self) -> Tensor:
        """H [columns, columns], float32; raises ModelRefused where the inputs were not finite."""
        _finite(self._sum.diagonal())
        full = self._sum * (2 / self._sequences)
        for start in range(0, len(full), STRIPE):  # mirrored in place: a temporary of n x n is 268 MB at n = 8,192
            stripe, below = slice(start, start + STRIPE), slice(start + STRIPE, None)
            full[below, stripe] = full[stripe, below].T
            square = full[stripe, stripe]
            square.copy_(square.triu() + square.triu(1).T)
        return full

    def only(self, features: Tensor) -> "Gram":
        """The Gram matrix of the features in the mask `features` [columns] only."""
        part = Gram(int(features.sum()))
        part._sum = self._sum[features][:, features]
        part._sequences, part._tokens, part.layer = self._sequences, self._tokens, self.layer
        return part

    @property
    def dead(self) -> Tensor:
        """True for input features [columns] that were zero in all the data."""
        return self._sum.diagonal() == 0

    def inverse_factor(self, damping: float) -> Tensor:
        """The upper Cholesky factor U of the inverse of H + damping * mean(diag H) * I; U^T U = H^-1.

        The mean is over features that are not dead; it replaces the zero diagonal of dead ones. Where the sum is not
        positive definite in float32, the damping is raised tenfold with a warning, up to MAX_DAMPING; ModelRefused
        beyond.
        """
        if damping not in self._factors:
            self._factors[damping] = self._factor(damping)
        return self._factors[damping]

    def inverse_moment(self, damping: float) -> Tensor:
        """The inverse of E[x x^T], a mean over tokens, damped as in `inverse_factor`; [columns, columns], float64."""
        factor = self.inverse_factor(damping).double()
        return factor.T @ factor * (2 * self._tokens / self._sequences)

    def spectrum(self, damping: float) -> Spectrum:
        """The eigendecomposition of H_ij / sqrt(H_ii H_jj) + damping * I, with a diagonal of 1 for dead features."""
        if damping not in self._spectra:
            self._spectra[damping] = Spectrum.of(self.value, damping)
        return self._spectra[damping]

    def _factor(self, damping: float) -> Tensor:
        dead = self.dead
        diagonal = self._sum.diagonal() * (2 / self._sequences)
        mean = torch.tensor(1.0) if dead.all() else diagonal[~dead].mean()
        diagonal[dead] = mean  # so that dead features do not depend on the scale of the others
        while damping <= MAX_DAMPING:
            gram = self.value
            gram.diagonal().copy_(diagonal + damping * mean)
            factor = inverse_factor(gram)
            if factor is not None:
                return factor
            logger.warning(
                "the Gram matrix of the %d inputs of %s is singular with damping %g; trying ten times that",
                len(diagonal),
                self.layer,
                damping,
            )
            damping *= 10
        raise ModelRefused(f"the inputs of a layer of {len(diagonal)} columns are not finite, so it cannot be pruned")


def _finite(sums: Tensor) -> Tensor:
    """`sums` of squares [columns]; raises ModelRefused unless they are finite."""
    if not sums.isfinite().all():
        raise ModelRefused(f"the inputs of a layer of {len(sums)} columns are not finite, so it cannot be pruned")
    return sums


def inverse_factor(gram: Tensor) -> Tensor | None:
    """The upper Cholesky factor U of the inverse of `gram`, U^T U = G^-1; None unless `gram` is positive definite.

    `gram` is overwritten, so that two n x n matrices are in memory at most.
    """
    lower, failed = torch.linalg.cholesky_ex(gram)
    if failed:
        return None
    torch.cholesky_inverse(lower, out=gram)
    upper, failed = torch.linalg.cholesky_ex(gram, upper=True, out=(lower, failed))
    return None if failed or not upper.isfinite().all() else upper


class BlockInfluence:
    """How much a block changes the hidden state: 1 - mean over tokens of cos(before, after).

    Men et al., ShortGPT, https://arxiv.org/abs/2403.03853.
    """

    def __init__(self) -> None:
        self._sum = 0.0
        self._tokens = 0

    def update(self, before: Tensor, after: Tensor) -> None:
        """Take in the hidden states [B, T, hidden] before and after the block."""
        cosine = torch.nn.functional.cosine_similarity(before.double(), after.double(), dim=-1)
        self._sum += cosine.sum().item()
        self._tokens += cosine.numel()

    @property
    def value(self) -> float:
        """The influence: 0 where no token's direction changes, at most 2."""
        return 1 - self._sum / self._tokens


S = TypeVar("S", bound=Statistic)


class InputStatistics:
    """The statistics of the inputs of one linear layer, by type: `statistics[Gram].value`."""

    def __init__(self, needs: tuple[type[Statistic], ...], columns: int, layer: str = Statistic.layer) -> None:
        self._statistics = {need: need(columns) for need in needs}
        for statistic in self._statistics.values():
            statistic.layer = layer
        self.moments: Mapping[int, Tensor] = {}
        """E[g^p] of the weight's gradient g over the sequences, [outputs, inputs], by p."""
        self.outputs: Tensor | None = None
        """The Fisher matrix of the layer's outputs [outputs, outputs], where the objective is the loss."""

    def __getitem__(self, need: type[S]) -> S:
        return cast(S, self._statistics[need])

    def __contains__(self, need: type[Statistic]) -> bool:
        return need in self._statistics

    def update(self, inputs: Tensor) -> None:
        """Take one batch of inputs [..., tokens, columns] into every statistic."""
        for statistic in self._statistics.values():
            statistic.update(inputs)

    def combine(self, add: Add) -> None:
        """Replace the running sums of every statistic by those over all processes."""
        for statistic in self._statistics.values():
            statistic.combine(add)

    def with_gradients(self, moments: Mapping[int, Tensor], outputs: Tensor | None = None) -> "InputStatistics":
        """These same statistics, which layers may share, with what one layer's own gradients gave."""
        observed = copy(self)
        observed.moments, observed.outputs = moments, outputs
        return observed
