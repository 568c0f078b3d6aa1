"""Signing keys and signers files: Ed25519, or the elliptic curves of OpenSSF model-signing.

A signers file has a line `NAME KEY [roles=ROLE,...]` for each key, where KEY is the public key's DER in base64; without
roles a key has all of them. The line `separate = true` demands an approval by somebody other than the promoter. `#`
starts a comment.
"""

import base64
import hashlib
import os
from pathlib import Path
from typing import Literal, NamedTuple, Self, get_args

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
)

from server.errors import SignatureError

PrivateKey = Ed25519PrivateKey | ec.EllipticCurvePrivateKey
PublicKey = Ed25519PublicKey | ec.EllipticCurvePublicKey
CURVES: dict[str, hashes.HashAlgorithm] = {
    "secp256r1": hashes.SHA256(),
    "secp384r1": hashes.SHA384(),
    "secp521r1": hashes.SHA512(),
}
"""OpenSSF's curves, each with its hash."""
Role = Literal["sign", "evaluate", "approve", "promote"]
"""What a key may sign: artifacts, results, approvals and overrides, or moves of production."""
ROLES: tuple[Role, ...] = get_args(Role)
ROLES_PREFIX = "roles="


class Signer(NamedTuple):
    """A name, its public key, and what the key may sign."""

    name: str
    key: PublicKey
    roles: tuple[Role, ...] = ROLES

    @property
    def line(self) -> str:
        """The line of a signers file."""
        der = self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        roles = "" if set(self.roles) == set(ROLES) else f" {ROLES_PREFIX}{','.join(self.roles)}"
        return f"{self.name} {base64.b64encode(der).decode()}{roles}"

    @property
    def hint(self) -> str:
        """The id of the key in signatures, as in OpenSSF's: SHA-256 of its PEM."""
        return hint(self.key)

    def signed(self, content: bytes, signature: bytes) -> bool:
        """Verify that this key made `signature` over `content`; False if it did not."""
        try:
            if isinstance(self.key, Ed25519PublicKey):
                self.key.verify(signature, content)
            else:
                self.key.verify(signature, content, ec.ECDSA(CURVES[self.key.curve.name]))
        except InvalidSignature:
            return False
        return True


class Signers(NamedTuple):
    """The allowed signers."""

    path: Path
    signers: tuple[Signer, ...]
    separate: bool = False
    """Whether a promotion needs an approval by somebody other than who promotes."""

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read the signers file `path`; raises SignatureError naming the malformed line."""
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SignatureError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
        found, separate = [], False
        for number, line in enumerate(lines, 1):
            words = line.split("#")[0].split()
            if words[:2] == ["separate", "="]:
                separate = _flag(path, number, words[2:])
            elif words:
                found.append(_signer(path, number, words))
        if not found:
            raise SignatureError(f"{path} names no signer: add a line printed by `secateur keys signer`")
        return cls(path, tuple(found), separate)

    def find(self, hint: str, what: str | Path, role: Role) -> Signer:
        """The signer with the key `hint` and this role; raises SignatureError, naming `what`, if there is none."""
        found = [signer for signer in self.signers if signer.hint == hint]
        for signer in found:
            if role in signer.roles:
                return signer
        if found:
            raise SignatureError(
                f"{what} is signed by {found[0].name}, whose line of {self.path} has the roles "
                f"{', '.join(found[0].roles)} and not {role}"
            )
        raise SignatureError(f"{what} is signed with the key {hint[:16]}, which no line of {self.path} has")


def hint(key: PublicKey) -> str:
    """SHA-256 of the public key's PEM."""
    return hashlib.sha256(key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def create(path: Path, *, elliptic: bool) -> PublicKey:
    """Write a new private key to `path`, readable by its owner only; raises SignatureError if `path` exists."""
    key: PrivateKey = ec.generate_private_key(ec.SECP256R1()) if elliptic else Ed25519PrivateKey.generate()
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except OSError as error:
        raise SignatureError(f"{path} cannot be made: {error.strerror}; a key is never replaced") from None
    with os.fdopen(handle, "wb") as file:
        file.write(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return key.public_key()


def read_private(path: Path) -> PrivateKey:
    """The private key in the PEM file `path`; raises SignatureError for an unsupported or protected key."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise SignatureError(f"{path} cannot be read: {error.strerror}") from None
    except TypeError:
        raise SignatureError(f"{path} is protected by a passphrase: use a key without one") from None
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError(f"{path} is not a private key in PEM: make one with `secateur keys signer`") from None
    if isinstance(key, Ed25519PrivateKey) or (isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in CURVES):
        return key
    raise SignatureError(f"{path} is neither an Ed25519 key nor one of the curves {', '.join(CURVES)}")


def sign(key: PrivateKey, content: bytes) -> bytes:
    """The signature of `key` over `content`."""
    if isinstance(key, Ed25519PrivateKey):
        return key.sign(content)
    return key.sign(content, ec.ECDSA(CURVES[key.curve.name]))


def _signer(path: Path, number: int, words: list[str]) -> Signer:
    """One line of a signers file."""
    try:
        name, key, *roles = words
        public = load_der_public_key(base64.b64decode(key, validate=True))
    except (ValueError, UnsupportedAlgorithm):
        raise SignatureError(f"{path}, line {number}: not `NAME KEY` as `secateur keys signer` prints it") from None
    if isinstance(public, Ed25519PublicKey) or (
        isinstance(public, ec.EllipticCurvePublicKey) and public.curve.name in CURVES
    ):
        return Signer(name, public, _roles(path, number, roles))
    raise SignatureError(f"{path}, line {number}: neither an Ed25519 key nor one of {', '.join(CURVES)}")


def _roles(path: Path, number: int, words: list[str]) -> tuple[Role, ...]:
    """The roles at the end of a line; all if it names none."""
    if not words:
        return ROLES
    named = words[0].removeprefix(ROLES_PREFIX).split(",")
    if len(words) > 1 or not words[0].startswith(ROLES_PREFIX) or not set(named) <= set(ROLES):
        raise SignatureError(
            f"{path}, line {number}: {' '.join(words)!r} is not `{ROLES_PREFIX}` and some of {','.join(ROLES)}, "
            "separated by commas without spaces"
        )
    return tuple(role for role in ROLES if role in named)


def _flag(path: Path, number: int, words: list[str]) -> bool:
    """The value of `separate`."""
    if words not in (["true"], ["false"]):
        raise SignatureError(f"{path}, line {number}: write `separate = true` or `separate = false`")
    return words == ["true"]
