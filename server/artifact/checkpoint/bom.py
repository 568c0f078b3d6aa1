"""The machine-learning bill of materials of an artifact, CycloneDX 1.6, rendered from its lineage record alone."""

import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from server.artifact.checkpoint.card import LIMITS, USE, recovered
from server.artifact.checkpoint.chain import generations, links
from server.artifact.checkpoint.lineage import Data, Lineage, Step, address

FILE = "bom.cdx.json"


def render(lineage: Lineage, config: Mapping[str, Any]) -> bytes:
    """The document as JSON; the same record gives the same bytes."""
    identity = address(lineage)
    bom = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_OID, identity)}",
        "version": 1,
        "metadata": {
            "timestamp": lineage.created,
            "tools": {"components": [_tool(name, version) for name, version in lineage.versions.items()]},
            "component": _model(lineage, config),
        },
        "components": [
            {"type": "file", "bom-ref": f"file:{name}", "name": name, "hashes": _hashes(digest)}
            for name, digest in lineage.files.items()
        ],
    }
    return msgspec.json.format(msgspec.json.encode(bom), indent=2)


def _tool(name: str, version: str) -> dict[str, Any]:
    return {"type": "application" if name == "python" else "library", "name": name, "version": version}


def _model(lineage: Lineage, config: Mapping[str, Any]) -> dict[str, Any]:
    oldest = list(generations(lineage))[-1]
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": f"{oldest.base.name}, pruned",
        "licenses": [{"license": {"name": oldest.base.license or "unknown"}}],
        **_weights(lineage.files),
        "pedigree": {"ancestors": [_ancestor(record) for record in generations(lineage)]},
        "modelCard": {
            "modelParameters": {
                "task": "text-generation",
                "architectureFamily": str(config.get("model_type", "unknown")),
                "modelArchitecture": str((config.get("architectures") or ["unknown"])[0]),
                "datasets": list(_datasets(lineage)),
            },
            "quantitativeAnalysis": {"performanceMetrics": list(_metrics(lineage))},
            "considerations": {"useCases": [USE], "technicalLimitations": [LIMITS]},
        },
        "properties": list(_properties(lineage)),
    }


def _ancestor(record: Lineage) -> dict[str, Any]:
    """The base of `record`: an imported model, or an artifact of ours."""
    return {"type": "machine-learning-model", "name": record.base.name, "hashes": _hashes(record.base.digest)}


def _weights(files: Mapping[str, str]) -> dict[str, Any]:
    """The digest of the weights file if there is just one; shards have theirs as components."""
    digests = [digest for name, digest in files.items() if name.endswith((".safetensors", ".gguf"))]
    return {"hashes": _hashes(digests[0])} if len(digests) == 1 else {}


def _hashes(digest: str) -> list[dict[str, str]]:
    return [{"alg": "SHA-256", "content": digest}]


def _datasets(lineage: Lineage) -> Iterator[dict[str, Any]]:
    if lineage.calibration:
        yield from _sources("calibration", lineage.calibration)
    for step in lineage.steps:
        if step.recovery:
            yield from _sources("training", step.recovery.training)
            yield from _sources("held out from training", step.recovery.held_out)
    for text in lineage.evaluation.texts if lineage.evaluation else ():
        yield _dataset("evaluation", text.data)


def _sources(role: str, data: Data) -> Iterator[dict[str, Any]]:
    """`data`, or each source of a mixture."""
    for part in data.parts or (data,):
        yield _dataset(role, part)


def _dataset(role: str, data: Data) -> dict[str, Any]:
    figures = {"role": role, "sha256": data.digest, "sequences": data.sequences, "tokens": data.tokens}
    properties = [{"name": f"secateur:{name}", "value": str(value)} for name, value in figures.items()]
    return {"type": "dataset", "name": data.source, "contents": {"properties": properties}}


def _metrics(lineage: Lineage) -> Iterator[dict[str, str]]:
    """Perplexity and bytes by model, and the figures of each gate."""
    if lineage.evaluation is None:
        return
    for measure in ("perplexity", "bytes"):
        for model, value in getattr(lineage.evaluation, measure).items():
            yield {"type": measure, "value": str(value), "slice": model}
    for text in lineage.evaluation.others:
        for model, value in text.perplexity.items():
            yield {"type": "perplexity", "value": str(value), "slice": f"{model} on {text.name}"}
    for gate in lineage.evaluation.gates:
        for name, value in gate.figures.items():
            yield {"type": name, "value": str(value), "slice": gate.task}


def _properties(lineage: Lineage) -> Iterator[dict[str, str]]:
    yield {"name": "secateur:recovered", "value": str(recovered(lineage)).lower()}
    for number, step in enumerate(links(lineage), 1):
        yield {"name": f"secateur:step:{number}", "value": _step(step)}


def _step(step: Step) -> str:
    """A step as JSON, without the figures of single weights."""
    values = {
        "technique": step.technique,
        "options": step.options,
        "parameters": step.parameters,
        "began_with": step.parent_digest,
        "made": step.digest,
        "recovery_tokens": step.recovery.tokens if step.recovery else 0,
        "recovery_flops": step.recovery.flops if step.recovery else 0,
    }
    return msgspec.json.encode(values).decode()
