"""Sources of weights by name: files, memory, and views that rename, replace or cut another source's weights.

Tensors are read one at a time; no source changes what it reads from.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from pruning.errors import ModelRefused, refusing
from server.storage.files import write_atomically


class WeightSource(Protocol):
    """The weights of a model, read one at a time under their Hugging Face names."""

    def names(self) -> list[str]:
        """All names."""
        ...

    def tensor(self, name: str) -> Tensor:
        """The weight `name`, dense, in its stored dtype."""
        ...

    def scales(self, name: str) -> Tensor | None:
        """The grid of a quantised weight; else None.

        It is scales [rows, groups], whose integer multiples the values are, or [rows, groups, 2] of scales and
        minimums, with values code * scale + minimum.
        """
        return None


class Shards:
    """The tensors of several safetensors files."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._files = _index(files)

    def names(self) -> list[str]:
        """All names."""
        return sorted(self._files)

    def tensor(self, name: str) -> Tensor:
        """The tensor `name`, read from its file."""
        with safe_open(self._files[name], framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    def scales(self, name: str) -> Tensor | None:
        """The tensor `NAME.scales` beside the weight, or None."""
        return self.tensor(f"{name}.scales") if f"{name}.scales" in self._files else None


class Overlay:
    """`source` with some weights replaced by the tensors in `files`, safetensors files."""

    def __init__(self, source: WeightSource, files: Sequence[Path]) -> None:
        self._source = source
        self._changed = Shards(files)
        self._names = set(self._changed.names())

    def names(self) -> list[str]:
        """All names of the source."""
        return self._source.names()

    def tensor(self, name: str) -> Tensor:
        """The replaced weight where there is one, else the source's."""
        return self._of(name).tensor(name)

    def scales(self, name: str) -> Tensor | None:
        """The scales of that same weight; None if it was replaced by an unquantised one."""
        return self._of(name).scales(name)

    def _of(self, name: str) -> WeightSource:
        return self._changed if name in self._names else self._source


class InMemory(WeightSource):
    """Tensors in memory."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        """All names."""
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        """The tensor `name` itself."""
        return self._tensors[name]


class RenamedWeights:
    """`source` under new names; `names` maps each new name to the old one, and weights missing there are left out."""

    def __init__(self, source: WeightSource, names: Mapping[str, str]) -> None:
        self._source = source
        self._names = names

    def names(self) -> list[str]:
        """The new names."""
        return list(self._names)

    def tensor(self, name: str) -> Tensor:
        """The source's weight behind the new name."""
        return self._source.tensor(self._names[name])

    def scales(self, name: str) -> Tensor | None:
        """Its scales."""
        return self._source.scales(self._names[name])


class Rows:
    """`source` with only the `rows`, ascending indices, of the tensors in `names`; the others are whole."""

    def __init__(self, source: WeightSource, names: Collection[str], rows: Sequence[int]) -> None:
        self._source = source
        self._cut = set(names)
        self._rows = torch.tensor(rows)

    def names(self) -> list[str]:
        """All names of the source."""
        return self._source.names()

    def tensor(self, name: str) -> Tensor:
        """The source's weight, or its remaining rows."""
        tensor = self._source.tensor(name)
        return tensor[self._rows] if name in self._cut else tensor

    def scales(self, name: str) -> Tensor | None:
        """Its scales, for the same rows."""
        scales = self._source.scales(name)
        return scales[self._rows] if scales is not None and name in self._cut else scales


class Unrounded:
    """`source` with each weight as it was before it was quantised, if a source that it overlays still has that."""

    def __init__(self, source: WeightSource) -> None:
        self._source = source

    def names(self) -> list[str]:
        """All names of the source."""
        return self._source.names()

    def tensor(self, name: str) -> Tensor:
        """The weight before quantisation."""
        source = self._source
        while isinstance(source, RenamedWeights | Overlay):
            if isinstance(source, RenamedWeights):
                name = source._names[name]
            elif source._of(name) is not source._source and source.scales(name) is None:
                break
            source = source._source
        return source.tensor(name)

    def scales(self, name: str) -> Tensor | None:
        """None: nothing is quantised."""
        return None


def checkpoint_files(folder: Path) -> list[Path]:
    """The safetensors files of a Hugging Face directory: the index's, else `model.safetensors`, else all.

    Raises ModelRefused for a damaged index, a missing file, or a tensor that is in two files.
    """
    index, whole = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.exists():
        with refusing(f"{index} is damaged"):
            files = sorted({folder / name for name in json.loads(index.read_bytes())["weight_map"].values()})
        if missing := next((file for file in files if not file.exists()), None):
            raise ModelRefused(f"{missing}, which {index.name} names, does not exist: copy the model again")
        return files
    if whole.exists():
        return [whole]
    every, seen = sorted(folder.glob("*.safetensors")), dict[str, Path]()
    for file in every:
        for name in _index([file]):
            if (other := seen.setdefault(name, file)) != file:
                raise ModelRefused(f"{name} is in {other.name} and in {file.name}: keep the files of one model only")
    return every


def _index(files: Sequence[Path]) -> dict[str, Path]:
    """The file of each tensor, by the tensor's name."""
    names: dict[str, Path] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                names |= dict.fromkeys(file.keys(), path)
        except SafetensorError as error:
            raise SafetensorError(f"{path.name}: {error}") from None
    return names


def write_file(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file atomically: after a kill it is complete or absent."""
    write_atomically(path, save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def parameters(source: WeightSource) -> tuple[int, int]:
    """The number of parameters in `source`, and the number that are exactly zero."""
    total = zeros = 0
    for name in source.names():
        tensor = source.tensor(name)
        total += tensor.numel()
        zeros += tensor.numel() - int(torch.count_nonzero(tensor))
    return total, zeros
