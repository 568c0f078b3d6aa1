"""Every stage, killed at random moments and on a disk that fills, must produce the bytes of an undisturbed run."""

import hashlib
import multiprocessing
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from msgspec import Struct

from pruning.commands.__main__ import main
from tests.pruning.conftest import RECIPE
from tests.pruning.stages.vocabulary.test_vocabulary import save, sentences, words

TRAINED = "tokens = 256\nlength = 16\nbatch = 2\nheld_out = 2\ninterval = 2"
HALF = "sparsity = 0.5"
SIZE = 100
"""Initial size of the disk in KiB: too small even for the base."""
PRELOADED = [__name__, "pruning.run.pipeline", "transformers.models.llama.modeling_llama"]
"""Modules that the fork server imports once for hundreds of processes."""
FULL = "secateur: the disk is full: free some space and run the same command again"


def layerwise(technique: str, more: str = "") -> str:
    """A stage that prunes every layer by `technique`."""
    return f'kind = "layerwise"\ntechnique = {{ {technique} }}\n{more}'


def pruned(stage: str) -> str:
    """`stage` after one that prunes."""
    return layerwise('name = "magnitude", sparsity = "2:4"') + "\n[[stages]]\n" + stage


STAGES = {
    **{
        name: layerwise(f'name = "{name}", sparsity = "2:4"')
        for name in ("magnitude", "wanda", "ria", "obd", "sparsegpt", "admm", "swaps")
    },
    "gptq": layerwise('name = "gptq", sparsity = "2:4", bits = 4, group = 32'),
    "in sequence": layerwise(f'name = "wanda", {HALF}', 'order = "sequential"'),
    "correction": layerwise(f'name = "sparsegpt", {HALF}', 'order = "sequential"\ncorrection = 0.5'),
    "corrected at once": layerwise(f'name = "sparsegpt", {HALF}', "correction = 0.5"),
    "owl": layerwise(f'name = "wanda", {HALF}', 'allocation = { name = "owl" }'),
    "search": layerwise(
        f'name = "wanda", {HALF}',
        'allocation = { name = "search", levels = [0.25, 0.5, 0.75], generations = 2, offspring = 4, tokens = 128 }',
    ),
    "awq": 'kind = "awq"\nbits = 4\ngroup = 32',
    "round": 'kind = "round"',
    **{f"depth by {by}": f'kind = "depth"\nremove = 1\nby = "{by}"' for by in ("influence", "angle", "perplexity")},
    **{
        f"width by {name}": f'kind = "width"\nffn = 0.25\nkv_groups = 1\nimportance = {{ name = "{name}" }}'
        for name in ("taylor", "second_order", "flap")
    },
    "vocabulary": 'kind = "vocabulary"',
    "reconstruct": pruned('kind = "reconstruct"\nsteps = 4\nheld_out = 4\ninterval = 2'),
    "reconstruct halves": pruned('kind = "reconstruct"\nunit = "halves"\nsteps = 4\nheld_out = 4\ninterval = 2'),
    "distill": pruned(f'kind = "distill"\n{TRAINED}'),
    "distill adapters": pruned(f'kind = "distill"\n{TRAINED}\nlora = {{ rank = 2, alpha = 4 }}'),
    "distill codes": pruned(f'kind = "distill"\n{TRAINED}\nquantise = {{ bits = 4, group = 32 }}'),
    "shear": f'kind = "shear"\nffn = 96\n{TRAINED}',
    "continue": f'kind = "continue"\ndomains = [{{ name = "all" }}]\n{TRAINED}',
}


class Stages(Struct):
    """Totals over all stages."""

    kinds: int
    kills: int
    full: int
    """Runs that ran out of disk."""
    unsaid: int
    """Full runs without an error message that says so."""
    died: int
    """Full runs that ended by a signal."""
    left: int
    """Full runs that left an output or a half-written file."""
    different: int
    """Artifacts that differ from those of an undisturbed run."""

    @property
    def good(self) -> bool:
        """Whether every fault occurred and none had an effect."""
        return self.kills > 0 and self.full > 0 and not self.unsaid + self.died + self.left + self.different


def exam(folder: Path, names: Iterable[str] = tuple(STAGES), *, kills: int, growth: float) -> Stages | None:
    """Run the stages of `names`; a full disk grows by `growth`. None if no small file system can be mounted."""
    found = Stages(0, 0, 0, 0, 0, 0, 0)
    generator = random.Random(0)
    model = save(folder / "base" / "model")
    text = folder / "text.txt"
    text.write_text(sentences(1, words(2, 30), 120))
    for name in names:
        recipe = folder / f"{name}.toml"
        recipe.write_text(RECIPE.format(model=model, text=text, stages=f"[[stages]]\n{STAGES[name]}"))
        whole = folder / name / "whole"
        begun = time.monotonic()
        assert run(recipe, whole) == 0, (whole / "errors").read_text()
        expected, took = digests(whole), time.monotonic() - begun
        found.kinds += 1
        found.kills += killed(recipe, folder / name / "killed", [generator.uniform(0, took / 2) for _ in range(kills)])
        found.different += digests(folder / name / "killed") != expected
        with small(folder / name / "full") as disk:
            if disk is None:
                return None
            filled(recipe, disk, growth, found)
            found.different += digests(disk) != expected
    return found


def killed(recipe: Path, target: Path, moments: list[float]) -> int:
    """Kill a run after each of `moments`, in seconds, then let one finish; returns how many were killed under way."""
    count = 0
    for seconds in moments:
        process = start(recipe, target)
        process.join(seconds)
        count += process.is_alive()
        process.kill()
        process.join()
    assert run(recipe, target) == 0, (target / "errors").read_text()
    return count


def filled(recipe: Path, disk: Path, growth: float, found: Stages) -> None:
    """Run until the disk is full, grow it by `growth`, and repeat until a run finishes; counts faults in `found`."""
    size = SIZE
    while (code := run(recipe, disk, errors := disk.parent / "errors")) != 0:
        assert size < 100_000, errors.read_text()
        found.full += 1
        found.died += code < 0
        said = errors.read_text().splitlines()[-1:]
        if not said or not said[0].startswith(FULL):
            found.unsaid += 1
            print(recipe.stem, size, code, *said, file=sys.stderr)
        if (disk / "out").exists() or list(disk.rglob("*.partial")):
            found.left += 1
            print(recipe.stem, size, *disk.rglob("*.partial"), file=sys.stderr)
        size = int(size * (1 + growth))
        subprocess.run(["mount", "-o", f"remount,size={size}k", disk], check=True)


@contextmanager
def small(disk: Path) -> Iterator[Path | None]:
    """Mount a file system of `SIZE` at `disk`; yields None if that is not possible."""
    disk.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(command, check=False, capture_output=True).returncode:
        yield None
        return
    try:
        yield disk
    finally:
        subprocess.run(["umount", disk], check=True)


def run(recipe: Path, target: Path, errors: Path | None = None) -> int:
    """Run `recipe` in a process of its own; returns its exit code, negative for a signal."""
    process = start(recipe, target, errors)
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def start(recipe: Path, target: Path, errors: Path | None = None) -> BaseProcess:
    """Start a process that runs `recipe` into `target`; its output goes to a file there or to `errors`."""
    target.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_work, args=(recipe, target, errors))
    process.start()
    return process


def _work(recipe: Path, target: Path, errors: Path | None) -> None:
    torch.set_num_threads(1)  # sums must be those of the undisturbed run
    with (errors or target / "errors").open("w") as log, redirect_stdout(log), redirect_stderr(log):
        os.dup2(log.fileno(), 2)
        code = main(["prune", str(recipe), "--output", str(target / "out"), "--base-cache", str(target / "base")])
    os._exit(code)


def digests(target: Path) -> Mapping[str, str]:
    """SHA-256 of the artifact's files, except the two that record when it was made."""
    files = (path for path in (target / "out").iterdir() if path.name not in ("lineage.json", "bom.cdx.json"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
