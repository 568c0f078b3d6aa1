"""`model.sig`, in OpenSSF model-signing's format: a signed DSSE envelope of an in-toto statement of all files' SHA-256.

OpenSSF's own verifier accepts elliptic-curve signatures; with Ed25519 only the signature itself differs.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from server.artifact.checkpoint.lineage import FILE, SIGNATURE, Lineage, decoded, digest_of
from server.artifact.signing.keys import PrivateKey, Signer, Signers, hint, sign
from server.errors import SignatureError
from server.storage.digests import FileDigests
from server.storage.files import replacing

PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


class Resource(msgspec.Struct, frozen=True):
    """A file and its SHA-256."""

    name: str
    algorithm: Literal["sha256"]
    digest: Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class Predicate(msgspec.Struct, frozen=True):
    """All files, sorted by name."""

    resources: tuple[Resource, ...]
    serialization: dict[str, Any]


class Subject(msgspec.Struct, frozen=True):
    """The artifact; `digest` is the SHA-256 over the digests of its files."""

    name: str
    digest: dict[str, str]


class Statement(msgspec.Struct, frozen=True, kw_only=True):
    """The signed in-toto statement."""

    kind: str = msgspec.field(name="_type")
    subject: tuple[Subject, ...]
    predicate_type: str = msgspec.field(name="predicateType")
    predicate: Predicate


class Signature(msgspec.Struct, frozen=True):
    """A DSSE signature; JSON holds its bytes in base64."""

    sig: bytes
    keyid: str = ""


class Envelope(msgspec.Struct, frozen=True, rename="camel"):
    """A DSSE envelope."""

    payload: bytes
    payload_type: str
    signatures: tuple[Signature, ...]


class KeyHint(msgspec.Struct, frozen=True):
    """SHA-256 of the public key's PEM."""

    hint: str


class Material(msgspec.Struct, frozen=True, rename="camel"):
    """The bundle's verification material: a hint of the key."""

    public_key: KeyHint
    tlog_entries: tuple[()] = ()


class Bundle(msgspec.Struct, frozen=True, rename="camel"):
    """The content of `model.sig`: a sigstore bundle."""

    media_type: str
    verification_material: Material
    dsse_envelope: Envelope


def file_digests(directory: Path, known: FileDigests | None = None) -> dict[str, str]:
    """SHA-256 of every file except the signature, sorted by name; files that are `known` are not read again."""
    known = known or FileDigests()
    return {path.name: digest_of(path, known) for path in sorted(directory.iterdir()) if path.name != SIGNATURE}


def statement(name: str, files: Mapping[str, str]) -> bytes:
    """The payload to sign for `files`, name -> SHA-256."""
    resources = tuple(Resource(file, "sha256", digest) for file, digest in sorted(files.items()))
    settings = {"method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": [SIGNATURE]}
    subject = Subject(name, {"sha256": _root(resources)})
    predicate = Predicate(resources, settings)
    stated = Statement(kind=STATEMENT, subject=(subject,), predicate_type=PREDICATE, predicate=predicate)
    return msgspec.json.encode(stated)


def seal(payload: bytes, key: PrivateKey) -> bytes:
    """The signed bundle as JSON."""
    envelope = Envelope(payload, PAYLOAD, (Signature(sign(key, _authenticated(payload))),))
    return msgspec.json.encode(Bundle(BUNDLE, Material(KeyHint(hint(key.public_key()))), envelope))


def verify(directory: Path, signers: Signers, digests: FileDigests | None = None) -> Signer:
    """The signer of the artifact in `directory`; raises SignatureError naming the first file that differs.

    Files that `digests` knows are not read again.
    """
    return _verified(directory, signers, digests)[0]


def signed_record(directory: Path, signers: Signers, digests: FileDigests | None = None) -> Lineage:
    """The signed lineage record, verified as by `verify`, to compare with what is loaded from `directory` later."""
    path = directory / FILE
    _, signed = _verified(directory, signers, digests)
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != signed.get(FILE):
        raise SignatureError(f"{path} was replaced while its signature was verified; try again")
    return decoded(content, path)


def record_signer(directory: Path, signers: Signers) -> Signer:
    """The signer of the artifact's record as it is now; reads no other file. Raises SignatureError."""
    signer, signed = _signed(directory, signers)
    path = directory / FILE
    try:
        present = digest_of(path)
    except OSError as error:
        raise SignatureError(f"{path} cannot be read: {error.strerror}") from None
    if present != signed.get(FILE):
        raise SignatureError(f"{path} was changed or swapped after {signer.name} signed")
    return signer


def _signed(directory: Path, signers: Signers) -> tuple[Signer, Mapping[str, str]]:
    """The signer, and the SHA-256 of each file as it was signed."""
    path = directory / SIGNATURE
    bundle = _read(path)
    signer = signers.find(bundle.verification_material.public_key.hint, path, "sign")
    envelope = bundle.dsse_envelope
    if not any(signer.signed(_authenticated(envelope.payload), one.sig) for one in envelope.signatures):
        raise SignatureError(f"{path} was changed: it names the key of {signer.name}, who did not sign this")
    return signer, {resource.name: resource.digest for resource in _resources(path, envelope)}


def _verified(directory: Path, signers: Signers, known: FileDigests | None) -> tuple[Signer, Mapping[str, str]]:
    """The signer, and the SHA-256 of each file as it was signed and is present."""
    signer, signed = _signed(directory, signers)
    present = file_digests(directory, known)
    for name in sorted(signed.keys() | present.keys()):
        if name not in signed:
            raise SignatureError(f"{directory / name} was added after {signer.name} signed; remove it, or sign again")
        if name not in present:
            raise SignatureError(f"{directory / name} is missing, which {signer.name} signed; copy the artifact again")
        if signed[name] != present[name]:
            raise SignatureError(f"{directory / name} was changed or swapped after {signer.name} signed")
    return signer, signed


def write(directory: Path, content: bytes) -> None:
    """Write the signature atomically, from a temporary file beside the artifact: unknown files in it are refused."""
    with replacing(directory / SIGNATURE, directory.with_name(f"{directory.name}.{SIGNATURE}.partial")) as partial:
        partial.write_bytes(content)


def _read(path: Path) -> Bundle:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Bundle)
    except FileNotFoundError:
        raise SignatureError(f"{path} is missing: the artifact is not signed; `secateur sign` does that") from None
    except (OSError, msgspec.DecodeError) as error:
        raise SignatureError(f"{path} is not a signature: {error}") from None


def _resources(path: Path, envelope: Envelope) -> tuple[Resource, ...]:
    """The files named in a signed envelope; raises SignatureError for any other kind of statement."""
    try:
        stated = msgspec.json.decode(envelope.payload, type=Statement)
    except msgspec.DecodeError as error:
        raise SignatureError(f"{path} does not sign a list of files: {error}") from None
    resources = stated.predicate.resources
    if (envelope.payload_type, stated.kind, stated.predicate_type) != (PAYLOAD, STATEMENT, PREDICATE):
        raise SignatureError(f"{path} signs something other than an artifact's files")
    if [subject.digest.get("sha256") for subject in stated.subject] != [_root(resources)]:
        raise SignatureError(f"{path} contradicts itself: its files do not make the digest of its subject")
    return resources


def _root(resources: tuple[Resource, ...]) -> str:
    """SHA-256 over the digests of the files."""
    return hashlib.sha256(b"".join(bytes.fromhex(resource.digest) for resource in resources)).hexdigest()


def _authenticated(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, the bytes that are signed."""
    return b"DSSEv1 %d %s %d %s" % (len(PAYLOAD), PAYLOAD.encode(), len(payload), payload)
