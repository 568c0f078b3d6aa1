"""The digest of a model's weights, independent of files and layouts: it links the steps of a lineage."""

import hashlib
from typing import Protocol

import torch
from torch import Tensor


class Weights(Protocol):
    """A source of weights by name."""

    def names(self) -> list[str]:
        """All names."""
        ...

    def tensor(self, name: str) -> Tensor:
        """The weight `name`, dense."""
        ...


def weights_digest(weights: Weights) -> str:
    """SHA-256 over name, dtype, shape and bytes of all weights, sorted by name; one weight is in memory at a time."""
    total = hashlib.sha256()
    for name in sorted(weights.names()):
        tensor = weights.tensor(name)
        if tensor.is_floating_point():
            tensor = tensor + 0.0  # packed layouts do not keep the sign of a zero
        total.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        if tensor.numel():
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()
