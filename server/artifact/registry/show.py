"""The registry in the terminal: a list, one version, and the difference of two."""

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import Struct

from server.artifact.checkpoint.card import describe, printable
from server.artifact.checkpoint.chain import links
from server.artifact.registry import statements
from server.artifact.registry.results import CheckedResult, checked
from server.artifact.registry.rules import judged
from server.artifact.registry.store import Registry, Version
from server.artifact.signing.keys import Signers

SHORT = 16
IGNORED = ("lineage.created", "lineage.versions", "lineage.parent.")
"""Fields that differ between any two versions and say little."""
PER_WEIGHT = (".sparsity.", ".losses.")
"""Figures of single weights: too many to compare."""


class Line(Struct, frozen=True):
    """A version in the list of all."""

    name: str
    """NAME@NUMBER."""
    address: str
    path: str
    added: str
    aliases: tuple[str, ...]
    gates: dict[str, bool]
    """Whether each task was passed, by its latest result."""
    results: tuple[CheckedResult, ...] = ()
    """Each result with its signature, if there are signers to check against."""


def listed(registry: Registry, signers: Signers | None = None) -> Iterator[Line]:
    """Every version of every model; with `signers`, also each result and its signature."""
    for model in registry.models():
        aliases = registry.aliases(model)
        for number in registry.numbers(model):
            version = registry.resolve(f"{model}@{number}")
            names = tuple(sorted(alias for alias, at in aliases.items() if at == number))
            results = tuple(checked(version, signers)) if signers else ()
            where = (version.name, version.address, str(version.path), version.added)
            yield Line(*where, names, judged(version), results)


def overview(registry: Registry, signers: Signers | None = None) -> Iterator[str]:
    """`listed` as lines."""
    for one in listed(registry, signers):
        verdict = "not evaluated" if not one.gates else "passed" if all(one.gates.values()) else "failed"
        yield f"{one.name:<24} {one.address[:SHORT]}  {verdict:<14}{', '.join(one.aliases)}"
        for result in one.results:
            yield f"  {printable(result.task)}: {'passed' if result.passed else 'failed'}, {printable(result.told)}"


def details(registry: Registry, version: Version) -> Iterator[str]:
    """The lines that describe one version."""
    aliases = [alias for alias, number in sorted(registry.aliases(version.model).items()) if number == version.number]
    yield f"{version.name} ({', '.join(aliases) or 'no alias'}), added {version.added}"
    yield f"  address   {version.address}"
    yield f"  path      {version.path}"
    yield f"  base      {printable(version.lineage.base.name)}"
    for step in links(version.lineage):
        yield f"  step      {printable(describe(step))}"
    for gate in version.gates:
        figures = ", ".join(f"{name} {value:.4g}" for name, value in gate.result.figures.items())
        verdict = "passed" if gate.result.passed else "failed"
        signed = "" if gate.source == "lineage" else f", {_key(gate.statement)}"
        yield f"  gate      {printable(gate.result.task)}: {verdict} ({figures}; from {gate.source[:SHORT]}{signed})"
    for approval in version.approvals:
        yield f"  {approval.kind:<9} {approval.added} key {approval.signer[:SHORT]}: {printable(approval.reason)}"
    for move in registry.moves(version.model):
        if version.number in (move.number, move.previous):
            was = f"version {move.previous}" if move.previous else "nothing"
            what = f"{was} -> version {move.number}: {printable(move.reason)}"
            yield f"  {move.kind:<9} {move.added} {_key(move.statement)}: {what}"
    for skill, (number, since) in registry.bindings(version.model).items():
        if number == version.number:
            yield f"  skill     {skill} since {since}"


def _key(statement: str) -> str:
    """The short id of the key that a statement names, or "not signed"; the signature itself is not verified here."""
    return f"key {statements.signing_key(statement)[:SHORT]}" if statement else "not signed"


def difference(left: Version, right: Version) -> Iterator[str]:
    """A line for each field that differs between two versions, without the figures of single weights."""
    ours, theirs = _flat(left), _flat(right)
    for key in sorted(ours.keys() | theirs.keys()):
        mine, other = ours.get(key, "-"), theirs.get(key, "-")
        if mine != other:
            yield f"{key}: {printable(str(mine))} | {printable(str(other))}"


def _flat(version: Version) -> dict[str, Any]:
    """All fields of a version by their dotted path."""
    values = {"address": version.address, "lineage": msgspec.to_builtins(version.lineage)}
    values["gates"] = judged(version)
    flat = dict(_leaves("", values))
    ignored = {key for key in flat if key.startswith(IGNORED) or any(part in key for part in PER_WEIGHT)}
    return {key: value for key, value in flat.items() if key not in ignored}


def _leaves(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        items = [(str(key), inner) for key, inner in value.items()]
    elif isinstance(value, list | tuple):
        items = [(str(index), inner) for index, inner in enumerate(value)]
    else:
        yield path, value
        return
    for key, inner in items:
        yield from _leaves(f"{path}.{key}" if path else key, inner)
