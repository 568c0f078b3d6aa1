"""Who a visitor is, by a JWT that the page's own server signed; says nothing about what that person may do.

Only the one algorithm that the skill names is accepted, and a token may not live longer than five minutes.
"""

import time
from pathlib import Path
from typing import Annotated, Any, Literal

import jwt
from jwt.algorithms import get_default_algorithms
from msgspec import Meta, Struct

from server.errors import ConfigError, Unauthorized

LIFETIME = 300  # seconds that a token may have left
LEEWAY = 10  # seconds that two clocks may differ
SHORTEST_SECRET = 32  # bytes, as RFC 7518 asks for HS256
LONGEST_NAME = 256


class Identity(Struct, frozen=True, forbid_unknown_fields=True):
    """How a skill verifies a visitor's identity."""

    algorithm: Literal["HS256", "RS256", "EdDSA"]
    key: str = ""
    """The secret of HS256, or the public key in PEM."""
    key_file: str = ""
    """A file that holds it, relative to the skill's file."""
    required: bool = False
    """Whether visitors without a valid token are refused."""
    issuer: Annotated[str, Meta(max_length=256)] = ""
    """What `iss` must be, where it is not empty."""


def check(where: str, identity: Identity) -> None:
    """Raise ConfigError, which begins with `where`, unless the key fits the algorithm."""
    if not identity.key:
        raise ConfigError(f"{where}: `$.identity` needs `key` or `key_file`")
    if identity.algorithm == "HS256" and len(identity.key.encode()) < SHORTEST_SECRET:
        raise ConfigError(f"{where}: the secret of HS256 at `$.identity` has fewer than {SHORTEST_SECRET} bytes")
    try:
        get_default_algorithms()[identity.algorithm].prepare_key(identity.key)
    except Exception:  # the library raises many kinds, and their messages may hold the key
        raise ConfigError(f"{where}: the key at `$.identity` does not fit {identity.algorithm}") from None


def read_key(where: Path, identity: Identity) -> str:
    """The key itself; raises ConfigError if its file cannot be read."""
    if not identity.key_file:
        return identity.key
    if identity.key:
        raise ConfigError(f"{where}: `$.identity` has both `key` and `key_file`; give one of them")
    path = where.parent / identity.key_file
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError(f"{where}: {path} at `$.identity.key_file` cannot be read as text") from None


def person(identity: Identity | None, token: str | None, skill: str, known: str | None = None) -> str | None:
    """The `sub` of a valid token, None without one; raises Unauthorized for any other, saying nothing of why.

    `known` is whose conversation goes on: that person's token may have expired meanwhile, since pages hold on to one.
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
    """One answer for every token that is not accepted."""
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
