"""Exports versions, their tags and aliases to an MLflow registry (extra `mlflow`, imported only here).

Idempotent: versions that MLflow has already are recognised by their address.
"""

import os
from typing import Any

import msgspec

from server.artifact.checkpoint.card import describe, printable
from server.artifact.checkpoint.chain import links
from server.artifact.registry.results import checked
from server.artifact.registry.rules import judged
from server.artifact.registry.store import Registry, Version
from server.artifact.signing.keys import Signers
from server.errors import RegistryError

ADDRESS = "secateur.address"
LONGEST = 5000
"""MLflow's limit of a tag's length, in characters."""


def export(registry: Registry, model: str, url: str, signers: Signers | None = None) -> int:
    """Export every version of `model` to the MLflow at `url`; returns their number. Raises RegistryError.

    With `signers`, a tag of each result says whether its signature checks.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # a governance tool must not report its models
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its default of seven takes minutes
    try:
        from mlflow import MlflowClient
    except ImportError:
        raise RegistryError("the export needs `pip install 'secateur[mlflow]'`") from None
    versions = [registry.resolve(f"{model}@{number}") for number in registry.numbers(model)]
    if not versions:
        raise RegistryError(f"there is no model {model!r} here; there are {', '.join(registry.models()) or 'none'}")
    try:
        client = MlflowClient(tracking_uri=url, registry_uri=url)
        numbers = _export(client, model, [(version, _tags(version, signers)) for version in versions])
        for alias, number in registry.aliases(model).items():
            client.set_registered_model_alias(model, alias, numbers[number])
    except Exception as error:  # MLflow passes on the errors of its HTTP and SQL libraries
        reason = printable(str(error))[:300]
        raise RegistryError(f"{url}: MLflow refuses: {reason}; repeat the export to continue there") from None
    return len(versions)


def _export(client: Any, model: str, versions: list[tuple[Version, dict[str, str]]]) -> dict[int, str]:
    """Create the missing versions, each with its tags; returns MLflow's version numbers by ours."""
    if not client.search_registered_models(filter_string=f"name = '{model}'"):
        client.create_registered_model(model, description="Pruned by Secateur; each version's tags are its lineage.")
    found = {
        entry.tags[ADDRESS]: str(entry.version)
        for entry in client.search_model_versions(f"name = '{model}'")
        if ADDRESS in entry.tags
    }
    numbers = {}
    for version, tags in versions:
        known = found.get(version.address)
        if known is None:
            made = client.create_model_version(model, str(version.path), tags=tags, description=_description(version))
            numbers[version.number] = str(made.version)
            continue
        for key, value in tags.items():  # gates and approvals may be new
            client.set_model_version_tag(model, known, key, value)
        numbers[version.number] = known
    return numbers


def _tags(version: Version, signers: Signers | None) -> dict[str, str]:
    lineage = version.lineage
    tags = {
        ADDRESS: version.address,
        "secateur.version": version.name,
        "prune.base": lineage.base.name,
        "prune.base_digest": lineage.base.digest,
        "prune.parent": lineage.parent_digest,
        "prune.license": lineage.base.license,
        "prune.techniques": "+".join(step.technique for step in links(lineage)),
        "prune.options": msgspec.json.encode([step.options for step in links(lineage)]).decode(),
    }
    for key, value in (lineage.evaluation.perplexity if lineage.evaluation else {}).items():
        tags[f"prune.perplexity.{key}"] = str(value)
    for text in lineage.evaluation.others if lineage.evaluation else ():
        tags |= {f"prune.perplexity.{text.name}.{key}": str(value) for key, value in text.perplexity.items()}
    for task, passed in judged(version).items():
        tags[f"prune.gate.{task}"] = "passed" if passed else "failed"
    for one in checked(version, signers):  # the last of a task is its latest
        tags[f"prune.gate.{one.task}.signature"] = one.told
    for number, approval in enumerate(version.approvals, 1):
        tags[f"prune.{approval.kind}.{number}"] = f"{approval.signer} {approval.added} {approval.reason}"
    return {key: value[:LONGEST] for key, value in tags.items() if value}


def _description(version: Version) -> str:
    return "\n".join(f"- {describe(step)}" for step in links(version.lineage))
