"""Files of results of `secateur evaluate`, and their signatures in `FILE.sig` beside them."""

from pathlib import Path

import msgspec
from msgspec import Struct

from server.artifact.checkpoint import lineage as record
from server.artifact.checkpoint.lineage import GateResult, Lineage
from server.artifact.registry import statements
from server.artifact.registry.statements import EvaluationStatement, Signed
from server.artifact.registry.store import Gate, Version, now
from server.artifact.signing import envelope
from server.artifact.signing.keys import PrivateKey, Signers
from server.errors import RegistryError, SecateurError
from server.storage.files import write_atomically


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


class CheckedResult(Struct, frozen=True):
    """A gate result of a version, and whether its signature checks."""

    task: str
    passed: bool
    source: str
    """`lineage`, or the SHA-256 of a file of results."""
    valid: bool | None
    """None without signers to check against."""
    signer: str = ""
    """The signer's name, if the signature is valid."""
    problem: str = ""
    """Why it is not valid."""

    @property
    def told(self) -> str:
        """The signature in a few words."""
        if self.valid is None:
            return "signature not checked: no file of signers was named"
        return f"signed by {self.signer}" if self.valid else f"does not count: {self.problem}"


def checked(version: Version, signers: Signers | None) -> list[CheckedResult]:
    """Every result of `version`, oldest first, with its signature checked; weights are not read."""
    return [_checked(version, gate, signers) for gate in version.gates]


def _checked(version: Version, gate: Gate, signers: Signers | None) -> CheckedResult:
    task, passed, source = gate.result.task, gate.result.passed, gate.source
    if signers is None:
        return CheckedResult(task, passed, source, None)
    try:
        name = _recorded(version, signers) if source == "lineage" else evaluated(version, gate, signers)[1]
    except SecateurError as error:
        return CheckedResult(task, passed, source, False, problem=error.message)
    return CheckedResult(task, passed, source, True, name)


def _recorded(version: Version, signers: Signers) -> str:
    """Who signed the artifact's record as an evaluator; raises SecateurError."""
    if record.address(record.read(version.path)) != version.address:
        raise RegistryError(f"{version.path / record.FILE} is not the record of {version.name}: it was exchanged")
    signer = envelope.record_signer(version.path, signers)
    if "evaluate" not in signer.roles:
        raise RegistryError(f"the record is signed by {signer.name}, whose line of {signers.path} lacks `evaluate`")
    return signer.name


def signature_of(file: Path) -> Path:
    """Where the signature of a file of results lies."""
    return file.with_name(f"{file.name}.sig")


def sign(file: Path, key: PrivateKey) -> None:
    """Write the signature of the results in `file` beside it."""
    results = _read(file)
    one = statements.signed(_statement(_result(file, results), results.weights, record.digest_of(file), key), key)
    write_atomically(signature_of(file), msgspec.json.encode(one))


def gate(file: Path, lineage: Lineage, key: PrivateKey | None = None) -> Gate | None:
    """The gate result in `file` for the artifact of `lineage`; None for a task without gates.

    It is signed with `key`, or by the signature beside the file if there is one. Raises RegistryError.
    """
    results = _read(file)
    if results.weights != lineage.subject:
        raise RegistryError(f"{file} belongs to another artifact: the SHA-256 of its weights differs")
    result, source = _result(file, results), record.digest_of(file)
    if not results.gates:
        return None
    if key is not None:
        one = statements.signed(_statement(result, results.weights, source, key), key)
        return Gate(result, source, "", one.statement, one.signature)
    signed = _signature(file)
    if signed is None:
        return Gate(result, source)
    found = Gate(result, source, "", signed.statement, signed.signature)
    if not _states(statements.decoded(signed.statement, EvaluationStatement, str(signature_of(file))), found, lineage):
        raise RegistryError(
            f"{signature_of(file)} signs other results than {file} has: sign them with --key, or remove it"
        )
    return found


def evaluated(version: Version, gate: Gate, signers: Signers) -> tuple[EvaluationStatement, str]:
    """The signed statement of a gate result and its signer's name; raises RegistryError or SignatureError."""
    what = f"the result of {gate.result.task} of {version.name} from {gate.added}"
    if not gate.statement:
        raise RegistryError(f"{what} is not signed")
    one = Signed(gate.statement, gate.signature)
    stated, signer = statements.verified(one, EvaluationStatement, what, signers, "evaluate")
    if not _states(stated, gate, version.lineage):
        raise statements.forged(what, signer)
    return stated, signer.name


def unsigned(version: Version) -> list[str]:
    """The tasks with results from files that nobody signed."""
    signed = {gate.source for gate in version.gates if gate.statement} | {"lineage"}
    return sorted({gate.result.task for gate in version.gates if gate.source not in signed})


def _states(stated: EvaluationStatement, gate: Gate, lineage: Lineage) -> bool:
    """Whether `stated` has the task, verdict, figures and source of `gate`, and the weights of `lineage`."""
    result = gate.result
    told = (stated.task, stated.passed, stated.figures, stated.results, stated.weights)
    return told == (result.task, result.passed, result.figures, gate.source, lineage.subject)


def _statement(result: GateResult, weights: str, source: str, key: PrivateKey) -> EvaluationStatement:
    return EvaluationStatement(
        "evaluation", result.task, weights, result.passed, result.figures, source, statements.key_of(key), now()
    )


def _signature(file: Path) -> Signed | None:
    path = signature_of(file)
    try:
        return msgspec.json.decode(path.read_bytes(), type=Signed)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise RegistryError(f"{path} is not a signature of results: {error}") from None


def _read(file: Path) -> Results:
    try:
        return msgspec.json.decode(file.read_bytes(), type=Results)
    except OSError as error:
        raise RegistryError(f"{file} cannot be read: {error.strerror}") from None
    except msgspec.DecodeError as error:
        raise RegistryError(f"{file} is not a file of `secateur evaluate --task`: {error}") from None


def _result(file: Path, results: Results) -> GateResult:
    """The verdict over all gates; raises RegistryError if one does not follow from its figure."""
    if any(gate.passed != (gate.measured.high <= gate.limit) for gate in results.gates):
        raise RegistryError(f"{file} contradicts itself: a gate's verdict does not follow from its figure")
    figures = {gate.gate: gate.measured.high for gate in results.gates}
    limits = {f"{gate.gate} limit": gate.limit for gate in results.gates}
    return GateResult(results.task, all(gate.passed for gate in results.gates), figures | limits)
