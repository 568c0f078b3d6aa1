"""The registry's rules: add only intact artifacts, promote only versions that passed their gates or were overridden.

Everything is checked before anything is written; after a RegistryError nothing has changed.
"""

import base64
from collections.abc import Sequence
from pathlib import Path

import msgspec
from msgspec import Struct

from server.artifact.checkpoint import chain
from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.lineage import WEIGHTS, GateResult, Lineage
from server.artifact.registry.store import Approval, Kind, Move, Registry, Version, now
from server.artifact.signing import envelope
from server.artifact.signing.keys import PrivateKey, Signers, hint, sign
from server.errors import RegistryError
from server.storage.digests import FileDigests


class Statement(Struct, frozen=True):
    """The signed text of an approval; the address binds it to the version's exact files."""

    model: str
    address: str
    kind: Kind
    reason: str
    key: str
    time: str


class Measured(Struct, frozen=True):
    """A figure of an evaluation and the upper end of its interval."""

    value: float
    high: float


class Judgement(Struct, frozen=True):
    """A gate in an evaluation's results."""

    gate: str
    limit: float
    measured: Measured
    passed: bool


class Results(Struct, frozen=True):
    """The fields that are read from a file of `secateur evaluate ARTIFACT --task TASK`."""

    task: str
    weights: str
    gates: tuple[Judgement, ...]


class Candidate(Struct, frozen=True):
    """An artifact that may be added, and its gate results, each with its source (see `Gate`)."""

    path: Path
    lineage: Lineage
    gates: tuple[tuple[GateResult, str], ...]


def examine(path: Path, results: Sequence[Path] = ()) -> Candidate:
    """Verify the artifact at `path` and collect the gate results of its lineage and of the files `results`.

    Raises RegistryError or ArtifactError.
    """
    from server.artifact.checkpoint import reader  # late: torch takes seconds

    if form := chain.exported(record.read(path)):
        raise RegistryError(f"{path} is an export for other software ({form}): add the artifact it was made from")
    lineage = reader.verified_record(path)
    gates = [(gate, "lineage") for gate in (lineage.evaluation.gates if lineage.evaluation else ())]
    gates += [found for file in results if (found := _results(file, lineage))]
    return Candidate(path.resolve(), lineage, tuple(gates))


def verify(version: Version, signers: Signers | None, digests: FileDigests | None = None) -> str:
    """Check that the version's files are intact, and with `signers` also signed; returns the signer's name or "".

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
    return envelope.verify(version.path, signers, digests).name if signers else ""


def approve(registry: Registry, version: Version, kind: Kind, reason: str, key: PrivateKey) -> Approval:
    """Sign and add an approval or override; raises RegistryError without a reason."""
    if not reason.strip():
        raise RegistryError("an approval needs a reason: say why with --reason")
    statement = Statement(version.model, version.address, kind, reason, hint(key.public_key()), now())
    text = msgspec.json.encode(statement)
    signature = base64.b64encode(sign(key, text)).decode()
    approval = Approval(kind, statement.key, reason, text.decode(), signature, statement.time)
    registry.approve(version, approval)
    return approval


def signer(version: Version, approval: Approval, signers: Signers) -> str:
    """The name of the signer of an approval of `version`; raises SignatureError or RegistryError if it is invalid."""
    what = f"the {approval.kind} of {version.name} from {approval.added}"
    found = signers.find(approval.signer, what)
    try:
        statement = msgspec.json.decode(approval.statement, type=Statement)
    except msgspec.DecodeError as error:
        raise RegistryError(f"{what} is malformed: {error}") from None
    told = (statement.model, statement.address, statement.kind, statement.reason)
    try:
        signed = found.signed(approval.statement.encode(), base64.b64decode(approval.signature))
    except ValueError:  # not base64
        signed = False
    if not signed or told != (version.model, version.address, approval.kind, approval.reason):
        raise RegistryError(f"{what} is forged: {found.name} did not sign it")
    return found.name


def judged(version: Version) -> dict[str, bool]:
    """Whether each task was passed, by its latest result; a failure in the artifact's own record is final.

    The record is signed; a file of results is not, so it cannot revoke the record's failure.
    """
    evaluation = version.lineage.evaluation
    own = evaluation.gates if evaluation else ()
    last = {gate.result.task: gate.result.passed for gate in version.gates}
    return last | {result.task: False for result in own if not result.passed}


def permitted(version: Version, signers: Signers | None) -> str:
    """The reason why `version` may be promoted; raises RegistryError naming what is missing."""
    gates = judged(version)
    failed = sorted(task for task, passed in gates.items() if not passed)
    if gates and not failed:
        return f"gates passed: {', '.join(sorted(gates))}"
    lacking = f"failed its gate {', '.join(failed)}" if failed else "has no gate result: it was not evaluated on a task"
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


def promote(registry: Registry, version: Version, signers: Signers | None) -> str:
    """Put `version` into production and return the reason; of two concurrent promotions the first wins."""
    last = registry.last_move(version.model)
    previous = last.number if last else None
    if previous == version.number:
        raise RegistryError(f"{version.name} is in production already")
    reason = permitted(version, signers)
    verify(version, signers)
    number = last.move + 1 if last else 1
    registry.move(version.model, Move(number, "promote", version.number, previous, reason, now()))
    return reason


def rollback(registry: Registry, model: str, signers: Signers | None) -> Version:
    """Put the previous production version back, after verifying it, and return it."""
    last = registry.last_move(model)
    if last is None:
        raise RegistryError(f"{model} has nothing in production to roll back")
    promotions = [move for move in registry.moves(model) if move.kind == "promote" and move.number == last.number]
    before = promotions[-1].previous if promotions else None
    if before is None:
        raise RegistryError(f"{model}@{last.number} is the first in production: there is nothing to go back to")
    version = registry.resolve(f"{model}@{before}")
    verify(version, signers)
    reason = f"rolled back from version {last.number}"
    registry.move(model, Move(last.move + 1, "rollback", before, last.number, reason, now()))
    return version


def _results(file: Path, lineage: Lineage) -> tuple[GateResult, str] | None:
    """The gate result in `file` for the artifact of `lineage`, and the file's digest; None for a task without gates."""
    try:
        results = msgspec.json.decode(file.read_bytes(), type=Results)
    except OSError as error:
        raise RegistryError(f"{file} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise RegistryError(f"{file} is not a file of `secateur evaluate --task`: {error}") from None
    if results.weights != lineage.files[WEIGHTS]:
        raise RegistryError(f"{file} belongs to another artifact: the SHA-256 of its weights differs")
    if not results.gates:
        return None
    figures = {gate.gate: gate.measured.high for gate in results.gates}
    limits = {f"{gate.gate} limit": gate.limit for gate in results.gates}
    passed = all(gate.passed for gate in results.gates)
    if any(gate.passed != (gate.measured.high <= gate.limit) for gate in results.gates):
        raise RegistryError(f"{file} contradicts itself: a gate's verdict does not follow from its figure")
    return GateResult(results.task, passed, figures | limits), record.digest_of(file)
