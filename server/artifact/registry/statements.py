"""Signed statements: approvals, results and moves, each a JSON text with a signature over its bytes."""

import base64
from typing import Literal, TypeVar

import msgspec
from msgspec import Struct

from server.artifact.registry.store import Kind, Move
from server.artifact.signing.keys import PrivateKey, Role, Signer, Signers, hint, sign
from server.errors import RegistryError

T = TypeVar("T", bound=Struct)


class ApprovalStatement(Struct, frozen=True):
    """An approval or override; the address binds it to the version's exact files."""

    model: str
    address: str
    kind: Kind
    reason: str
    key: str
    time: str


class EvaluationStatement(Struct, frozen=True, forbid_unknown_fields=True):
    """A gate result of one file of weights."""

    type: Literal["evaluation"]
    task: str
    weights: str
    """SHA-256 of the artifact's weights."""
    passed: bool
    figures: dict[str, float]
    results: str
    """SHA-256 of the file of results."""
    key: str
    time: str


class MoveStatement(Struct, frozen=True, forbid_unknown_fields=True):
    """A change of the production version; `after` is the digest of the move before, which chains all moves."""

    type: Literal["move"]
    model: str
    move: int
    """Counts the model's moves from 1."""
    kind: Literal["promote", "rollback"]
    number: int
    address: str
    """Of the version `number`."""
    previous: int | None
    reason: str
    after: str
    """Digest of the move before, empty for the first."""
    key: str
    time: str

    def matches(self, move: Move) -> bool:
        """Whether the row has what was signed."""
        stated = (self.move, self.kind, self.number, self.previous, self.reason, self.time)
        return stated == (move.move, move.kind, move.number, move.previous, move.reason, move.added)


class Signed(Struct, frozen=True):
    """The text of a statement, and the signature over it in base64; the content of a file `RESULTS.json.sig`."""

    statement: str
    signature: str


def signed(statement: Struct, key: PrivateKey) -> Signed:
    """Sign `statement`, whose field `key` must be `key_of(key)`."""
    text = msgspec.json.encode(statement)
    return Signed(text.decode(), base64.b64encode(sign(key, text)).decode())


def key_of(key: PrivateKey) -> str:
    """The id of a signing key, as statements carry it in `key`: SHA-256 of the public key's PEM."""
    return hint(key.public_key())


class _Keyed(Struct, frozen=True):
    key: str


def signing_key(statement: str) -> str:
    """The id of the key that a statement claims to be signed by, unverified; empty if the statement is malformed."""
    try:
        return msgspec.json.decode(statement, type=_Keyed).key
    except msgspec.DecodeError:
        return ""


def verified(one: Signed, kind: type[T], what: str, signers: Signers, role: Role) -> tuple[T, Signer]:
    """The statement and its signer; raises SignatureError or RegistryError, naming `what`, if it is not valid."""
    stated = decoded(one.statement, kind, what)
    signer = signers.find(signing_key(one.statement), what, role)
    try:
        valid = signer.signed(one.statement.encode(), base64.b64decode(one.signature))
    except ValueError:  # not base64
        valid = False
    if not valid:
        raise forged(what, signer)
    return stated, signer


def decoded(statement: str, kind: type[T], what: str) -> T:
    """Decode a statement of this kind without verifying its signature; raises RegistryError if it is malformed."""
    try:
        return msgspec.json.decode(statement, type=kind)
    except msgspec.DecodeError as error:
        raise RegistryError(f"{what} is malformed: {error}") from None


def forged(what: str, signer: Signer) -> RegistryError:
    """The error for a statement that is not the signer's, or not about this row."""
    return RegistryError(f"{what} is forged: {signer.name} did not sign it")
