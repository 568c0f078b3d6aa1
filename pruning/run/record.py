"""Evaluates a finished candidate and writes its record: perplexities, model card, bill of materials and lineage."""

import hashlib
import json
from pathlib import Path
from typing import Any

import msgspec
from torch import Tensor

from pruning.data.retokenise import retokenise
from pruning.evaluation.scoring.perplexity import Int8Weights, perplexity
from pruning.model.as_found import bytes_as_found
from pruning.model.versions import versions
from pruning.recipe.sources import OFF_GRID, locate
from pruning.stages.context import StageModel
from pruning.stages.inputs import Inputs
from server.artifact.checkpoint import bom, card
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.reader import Artifact
from server.storage.files import write_atomically
from server.text import tokenizer_files

FOUND = "found"
"""The base as its publisher stores it; it holds the same values as the base at 16 bits, and so has its perplexity."""
RETOKENISED = "its text is written in the remaining tokens, its loss is per token of the base's vocabulary"


def evaluate(candidate: Artifact, inputs: Inputs, cache: Path, work: Path) -> Artifact:
    """`candidate` with its bytes and perplexities, beside the base's as found, at 16 bits and int8, in its record."""
    before, after = (tokenizer_files.read(artifact.path).library for artifact in (inputs.base, candidate))
    same = before.to_str() == after.to_str()
    model, texts = StageModel(candidate.config, candidate), []
    found, sizes = _found_bytes(inputs), {FOUND: 0}
    for number, (name, ids, data) in enumerate(inputs.evaluation, 1):
        figures = _base_figures(inputs.base, ids, data, cache, work)
        windows = ids if same else retokenise(ids, before, after)
        what = "evaluating the pruned model" + (f" on {name}" if name else "")
        pruned = perplexity(model, windows, work / f"evaluation-pruned{number}", what)
        dense = figures["perplexity"]
        texts.append(record.EvaluatedText(name, data, {FOUND: dense["dense"], **dense, "pruned": pruned}))
        sizes = {FOUND: found, **figures["bytes"], "pruned": candidate.size}
    first, *others = texts
    evaluation = record.Evaluation(
        data=first.data,
        window=first.data.tokens,
        perplexity=first.perplexity,
        bytes=sizes,
        note="" if same else RETOKENISED,
        name=first.name,
        others=tuple(others),
    )
    return write_record(candidate, msgspec.structs.replace(candidate.lineage, evaluation=evaluation))


def _found_bytes(inputs: Inputs) -> int:
    """Bytes of the base as found; an off-grid copy is a model that was found at 16 bits."""
    reference = inputs.recipe.base
    return inputs.base.size if reference.startswith(OFF_GRID) else bytes_as_found(locate(reference))


def write_record(candidate: Artifact, lineage: record.Lineage) -> Artifact:
    """`candidate` with the documents rendered from `lineage`, and `lineage` itself with the digests of all files.

    The lineage is written last: after a kill in between, its digests do not match and the candidate is refused.
    """
    documents = {card.FILE: card.render, bom.FILE: bom.render}  # the second lists the digest of the first
    files = {name: digest for name, digest in lineage.files.items() if name not in documents}
    for name, render in documents.items():
        write_atomically(candidate.path / name, render(msgspec.structs.replace(lineage, files=files), candidate.config))
        files = files | {name: record.digest_of(candidate.path / name)}
    complete = msgspec.structs.replace(lineage, files=files)
    write_atomically(candidate.path / record.FILE, record.encoded(complete))
    return Artifact(candidate.path, complete, candidate.config)


def _base_figures(
    base: Artifact, windows: Tensor, data: record.Data, cache: Path, work: Path
) -> dict[str, dict[str, Any]]:
    """Perplexity and bytes of the base at 16 bits ("dense") and int8, cached by text and software versions."""
    software = hashlib.sha256(json.dumps(versions()).encode()).hexdigest()[:8]  # others may compute other figures
    path = cache / "evaluations" / f"{base.path.name}-{data.digest[:12]}-{data.tokens}-{software}.json"
    if path.exists():
        figures: dict[str, dict[str, Any]] = json.loads(path.read_bytes())
        return figures
    model = StageModel(base.config, base)
    rounded = Int8Weights(model)
    folder = f"evaluation-{{}}_{data.digest[:8]}"
    before = perplexity(model, windows, work / folder.format("base"), "evaluating the base")
    int8 = perplexity(
        model._replace(source=rounded), windows, work / folder.format("int8"), "evaluating the base at int8"
    )
    size = base.size
    figures = {"perplexity": {"dense": before, "int8": int8}, "bytes": {"dense": size, "int8": size - rounded.saved}}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(figures).encode())
    return figures
