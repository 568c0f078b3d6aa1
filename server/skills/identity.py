"""Verifies visitors by a JWT that the page's own server signed: who they are, and their groups.

Only the algorithm that the skill names is accepted, and tokens must expire within five minutes.
"""

import json
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
GROUPS_SECONDS = 3600  # after which a page must show a new token to keep its visitor's groups
MOST_GROUPS = 32
LONGEST_GROUP = 64
MOST_GROUP_CHARACTERS = 1000  # of all names as JSON, so that a session token with them fits in a header


class Person(Struct, frozen=True):
    """A verified visitor."""

    name: str
    """The claim `sub`."""
    groups: tuple[str, ...] = ()
    """The claim `groups`, sorted: what the visitor may see of a knowledge beside what everyone may."""
    verified: int = 0
    """When a token that had not expired named the groups, in Unix seconds; 0 without groups."""


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


def person(identity: Identity | None, token: str | None, skill: str, known: Person | None = None) -> Person | None:
    """The visitor that a token for `skill` names, or None without a token; raises Unauthorized.

    `known` is the person whose conversation is resumed. A page keeps its first token, so an expired one is accepted
    from that person; its groups are then the known ones, so that an old token gives back no group that was lost, and
    none GROUPS_SECONDS after a valid token named them.
    """
    if identity is None or (token is None and not identity.required):
        return None
    claims = _claims(identity, token or "", skill, expired=known is not None)
    subject, expires = claims.get("sub"), claims["exp"]
    if not isinstance(subject, str) or not 0 < len(subject) <= LONGEST_NAME:
        raise refused()
    if not isinstance(expires, int | float) or expires > time.time() + LIFETIME + LEEWAY:
        raise refused()
    groups = _groups(claims)
    if expires >= time.time() - LEEWAY:
        return Person(subject, groups, int(time.time()) if groups else 0)
    if known is None or subject != known.name:
        raise refused()
    return known if time.time() < known.verified + GROUPS_SECONDS else Person(subject)


def refused() -> Unauthorized:
    """The same error for every refused token, so that it reveals nothing."""
    return Unauthorized("The identity token is missing or not valid for this skill.", code="identity_invalid")


def _groups(claims: dict[str, Any]) -> tuple[str, ...]:
    """The claim `groups`: by default none; raises Unauthorized for anything but a short list of short names."""
    found = claims.get("groups", [])
    if not isinstance(found, list) or len(found) > MOST_GROUPS:
        raise refused()
    if not all(isinstance(name, str) and 0 < len(name) <= LONGEST_GROUP for name in found):
        raise refused()
    if len(json.dumps(found)) > MOST_GROUP_CHARACTERS:
        raise refused()
    return tuple(sorted(set(found)))


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
