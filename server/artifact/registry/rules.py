"""The registry's rules: add only intact artifacts, promote only versions that passed their gates or were overridden.

`promote` and a server that loads a model check the same. Everything is checked before anything is written; after a
RegistryError nothing has changed.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from msgspec import Struct

from server.artifact.checkpoint import chain
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.lineage import Lineage
from server.artifact.registry import history, results, statements
from server.artifact.registry.statements import ApprovalStatement, MoveStatement, Signed
from server.artifact.registry.store import Approval, Gate, Kind, Move, Registry, Version, now
from server.artifact.signing import envelope
from server.artifact.signing.keys import PrivateKey, Signer, Signers
from server.errors import RegistryError, SecateurError
from server.storage.digests import FileDigests


class Candidate(Struct, frozen=True):
    """An artifact that may be added, and its gate results."""

    path: Path
    lineage: Lineage
    gates: tuple[Gate, ...]


def examine(path: Path, files: Sequence[Path] = (), key: PrivateKey | None = None) -> Candidate:
    """Verify the artifact at `path` and collect the gate results of its lineage and of the `files` of results.

    `key` signs the results of the files. Raises RegistryError or ArtifactError.
    """
    from server.artifact.checkpoint import reader  # late: torch takes seconds

    if form := chain.exported(record.read(path)):
        raise RegistryError(f"{path} is an export for other software ({form}): add the artifact it was made from")
    lineage = reader.verified_record(path)
    gates = [Gate(gate, "lineage") for gate in (lineage.evaluation.gates if lineage.evaluation else ())]
    gates += [found for file in files if (found := results.gate(file, lineage, key))]
    return Candidate(path.resolve(), lineage, tuple(gates))


def verify(version: Version, signers: Signers | None, digests: FileDigests | None = None) -> Signer | None:
    """Check that the version's files are intact, and with `signers` also signed; returns who signed them.

    Raises RegistryError or ArtifactError. Each file is read once, and not again if `digests` knows it. That the weights
    are those of the last step was checked when the version was added, whose address holds their digest.
    """
    digests = digests or FileDigests()
    if record.address(version.lineage) != version.address:
        raise RegistryError(f"the registry's record of {version.name} was changed: it is not what its address says")
    lineage = record.read(version.path)
    if record.address(lineage) != version.address:
        raise RegistryError(f"{version.path / record.FILE} is not the record of {version.name}: it was exchanged")
    record.verify(version.path, lineage, digests)
    chain.check(version.path, lineage)
    return envelope.verify(version.path, signers, digests) if signers else None


def approve(registry: Registry, version: Version, kind: Kind, reason: str, key: PrivateKey) -> Approval:
    """Sign and add an approval or override; raises RegistryError without a reason."""
    if not reason.strip():
        raise RegistryError("an approval needs a reason: say why with --reason")
    stated = ApprovalStatement(version.model, version.address, kind, reason, statements.key_of(key), now())
    one = statements.signed(stated, key)
    approval = Approval(kind, stated.key, reason, one.statement, one.signature, stated.time)
    registry.approve(version, approval)
    return approval


def signer(version: Version, approval: Approval, signers: Signers) -> str:
    """Verify an approval of `version` and return its signer's name; raises SignatureError or RegistryError."""
    what = f"the {approval.kind} of {version.name} from {approval.added}"
    one = Signed(approval.statement, approval.signature)
    stated, found = statements.verified(one, ApprovalStatement, what, signers, "approve")
    told = (stated.model, stated.address, stated.kind, stated.reason)
    if told != (version.model, version.address, approval.kind, approval.reason):
        raise statements.forged(what, found)
    return found.name


def judged(version: Version, signers: Signers | None = None, by: Signer | None = None) -> dict[str, bool]:
    """Whether each task was passed, by its latest result; a failure in the artifact's own record is final.

    With `signers`, only results count that one of them signed as an evaluator: files of results by their own
    signatures, the record by the artifact's, which `by` made.
    """
    evaluation = version.lineage.evaluation
    own = evaluation.gates if evaluation else ()
    failed = {result.task: False for result in own if not result.passed}
    if signers is None:
        return {gate.result.task: gate.result.passed for gate in version.gates} | failed
    recorded = {result.task: True for result in own if by and "evaluate" in by.roles}
    signed = []
    for gate in version.gates:
        try:
            signed.append(results.evaluated(version, gate, signers)[0])
        except SecateurError:  # `faults` names it
            continue
    return recorded | {one.task: one.passed for one in sorted(signed, key=lambda one: one.time)} | failed


def permitted(version: Version, signers: Signers | None, by: Signer | None = None) -> str:
    """The reason why `version` may be promoted; raises RegistryError naming what is missing."""
    gates = judged(version, signers, by)
    failed = sorted(task for task, passed in gates.items() if not passed)
    if gates and not failed:
        return f"gates passed: {', '.join(sorted(gates))}"
    lacking = f"failed its gate {', '.join(failed)}" if failed else "has no gate result: it was not evaluated on a task"
    if not gates and version.gates:
        lacking = "has no gate result that an allowed signer signed (`secateur evaluate --key`)"
    overrides = [approval for approval in version.approvals if approval.kind == "override"]
    if not overrides:
        raise RegistryError(
            f"{version.name} {lacking}; evaluate it and add the result, or let a signer override it "
            "(`secateur registry approve --override`)"
        )
    if signers is None:
        raise RegistryError(
            f"{version.name} {lacking}, and its override counts only with --signers, the file of allowed signers"
        )
    return f"{lacking}, overridden by {signer(version, overrides[-1], signers)}: {overrides[-1].reason}"


def allowed(version: Version, signers: Signers | None, digests: FileDigests | None = None) -> str:
    """The reason why `version` may be served: `verify` finds its files intact and it is `permitted`; raises as both."""
    return permitted(version, signers, verify(version, signers, digests))


def check_production(version: Version, moves: Sequence[Move], signers: Signers) -> MoveStatement:
    """Verify the last move, which must put `version` into production; returns its statement.

    With `separate = true` in the signers file, the version needs an approval, and none by its promoter. Raises
    RegistryError or SignatureError.
    """
    stated, promoter = history.check(version, moves, signers)
    if signers.separate and stated.kind == "promote":
        approvers = _approvers(version, signers)
        if promoter.name in approvers or not approvers:
            said = f"{promoter.name} approved and promoted it" if approvers else "nobody approved it"
            raise RegistryError(
                f"{version.name} needs an approval by somebody other than who promotes it, and {said}: "
                f"{signers.path} has `separate = true`"
            )
    return stated


def promote(registry: Registry, version: Version, key: PrivateKey, signers: Signers | None) -> str:
    """Put `version` into production by a signed move and return the reason; of two concurrent ones the first wins."""
    moves = registry.moves(version.model)
    previous = moves[-1].number if moves else None
    if previous == version.number and _accepted(version, moves, signers):
        raise RegistryError(f"{version.name} is in production already")
    reason = allowed(version, signers)
    _move(registry, version, Move(0, "promote", version.number, previous, reason, ""), moves, key, signers)
    return reason


def rollback(registry: Registry, model: str, key: PrivateKey, signers: Signers | None) -> Version:
    """Put the previous production version back by a signed move, checked as by `promote`, and return it."""
    moves = registry.moves(model)
    if not moves:
        raise RegistryError(f"{model} has nothing in production to roll back")
    last = moves[-1]
    promotions = [move for move in moves if move.kind == "promote" and move.number == last.number]
    before = promotions[-1].previous if promotions else None
    if before is None:
        raise RegistryError(f"{model}@{last.number} is the first in production: there is nothing to go back to")
    version = registry.resolve(f"{model}@{before}")
    allowed(version, signers)
    reason = f"rolled back from version {last.number}"
    _move(registry, version, Move(0, "rollback", before, last.number, reason, ""), moves, key, signers)
    return version


def faults(registry: Registry, version: Version, signers: Signers | None) -> list[str]:
    """A sentence for everything that is wrong with a version: files, results, approvals, and its place in production.

    Without `signers` only the files are checked. Results without a signature do not count and are no fault.
    """
    digests = FileDigests()
    checks: list[Callable[[], object]] = [partial(verify, version, signers, digests)]
    if signers is not None:
        checks += [partial(results.evaluated, version, gate, signers) for gate in version.gates if gate.statement]
        checks += [partial(signer, version, approval, signers) for approval in version.approvals]
        moves = registry.moves(version.model)
        if moves and moves[-1].number == version.number:
            checks.append(partial(check_production, version, moves, signers))
            checks.append(partial(allowed, version, signers, digests))
    return list(dict.fromkeys(message for check in checks if (message := _fault(check))))


def _fault(check: Callable[[], object]) -> str:
    """The error that `check` raises; empty if it raises none."""
    try:
        check()
    except SecateurError as error:
        return error.message
    return ""


def _approvers(version: Version, signers: Signers) -> set[str]:
    """Names of the signers with a valid approval or override of `version`."""
    found = set()
    for approval in version.approvals:
        try:
            found.add(signer(version, approval, signers))
        except SecateurError:  # `faults` names it
            continue
    return found


def _accepted(version: Version, moves: Sequence[Move], signers: Signers | None) -> bool:
    """Whether a server with `signers` would accept the last move, so that `version` need not be promoted again."""
    if signers is None:
        return bool(moves[-1].statement)
    return not _fault(partial(check_production, version, moves, signers))


def _move(
    registry: Registry, version: Version, move: Move, moves: Sequence[Move], key: PrivateKey, signers: Signers | None
) -> None:
    """Sign `move` as the next after `moves` and write it, if a server with these signers would accept it."""
    signed = history.next_move(moves, version, move, key)
    if signers is not None:
        check_production(version, [*moves, signed], signers)
    registry.move(version.model, signed)
