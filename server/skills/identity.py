"""Verifies visitors by a JWT that the page's own server signed: who they are, not what they may do.

Only the algorithm that the skill names is accepted, and tokens must expire within five minutes.
"""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jwt
from jwt.algorithms import get_default_algorithms
from msgspec import Meta, Struct

from server.errors import ConfigError, Unauthorized
from server.storage.toml import FILE

LIFETIME = 300  # seconds until a token's expiry, at most
LEEWAY = 10  # seconds of clock skew
SHORTEST_SECRET = 32  # bytes: RFC 7518, section 3.2, for HS256
LONGEST_NAME = 256


class Identity(Struct, frozen=True, forbid_unknown_fields=True):
    """How a skill verifies its visitors' tokens."""

    algorithm: Literal["HS256", "RS256", "EdDSA"]
    """The only signature algorithm accepted."""
    key: str = ""
    """The HS256 secret, at least 32 bytes, or the public key in PEM; or `file:PATH`, relative to the skill's file."""
    key_file: str = ""
    """The same PATH without `file:`."""
    required: bool = False
    """Whether visitors without a token are refused with 401; an invalid token always is."""
    issuer: Annotated[str, Meta(max_length=256)] = ""
    """The `iss` claim that tokens must have; empty accepts any."""


def check(where: str, identity: Identity) -> None:
    """Raise ConfigError, beginning with `where`, unless there is a key that fits the algorithm."""
    if not identity.key:
        raise ConfigError(f"{where}: `$.identity` needs `key` or `key_file`")
    if identity.algorithm == "HS256" and len(identity.key.encode()) < SHORTEST_SECRET:
        raise ConfigError(f"{where}: the HS256 secret at `$.identity` has fewer than {SHORTEST_SECRET} bytes")
    try:
        get_default_algorithms()[identity.algorithm].prepare_key(identity.key)
    except Exception:  # of any kind; its text may contain the key
        raise ConfigError(f"{where}: the key at `$.identity` does not fit {identity.algorithm}") from None


def read_key(where: Path, identity: Identity) -> str:
    """The key, read from its file if it names one; raises ConfigError."""
    in_file = identity.key.startswith(FILE)
    if not identity.key_file and not in_file:
        return identity.key
    if identity.key and identity.key_file:
        raise ConfigError(f"{where}: give either `key` or `key_file` at `$.identity`, not both")
    path = where.parent / (identity.key_file or identity.key.removeprefix(FILE))
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{where}: {path} at `$.identity` cannot be read as text") from None


def person(identity: Identity | None, token: str | None, skill: str, known: str | None = None) -> str | None:
    """The `sub` claim of a visitor's token for `skill`, or None without a token; raises Unauthorized.

    `known` is the person whose conversation is resumed. A page keeps its first token, so an expired one is accepted
    from that person.
    """
    if identity is None or (token is None and not identity.required):
        return None
    claims = _claims(identity, token or "", skill, expired=known is not None)
    subject, expires = claims.get("sub"), claims["exp"]
    if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_NAME:
        raise refused()
    if not isinstance(expires, int | float) or expires > time.time() + LIFETIME + LEEWAY:
        raise refused()
    if expires < time.time() - LEEWAY and subject != known:
        raise refused()
    return subject


def refused() -> Unauthorized:
    """The same error for every refused token, so that it reveals nothing."""
    return Unauthorized("The identity token is missing or not valid for this skill.", code="identity_invalid")


def _claims(identity: Identity, token: str, skill: str, *, expired: bool) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(
            token,
            identity.key,
            algorithms=[identity.algorithm],
            audience=skill,
            issuer=identity.issuer or None,
            leeway=LEEWAY,
            options={"require": ["exp", "sub", "aud"], "verify_exp": not expired},
        )
    except (jwt.InvalidTokenError, ValueError, TypeError, OverflowError):
        raise refused() from None
    return claims
