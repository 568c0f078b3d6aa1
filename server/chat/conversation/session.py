"""Signed tokens of the widget: `session` for at most 15 minutes, and `resume` to continue the conversation later.

Both are bound to skill, origin, conversation, person and groups. The signing key is random and lies beside the
conversations, so that tokens live as long as these and hold at every replica that shares them.
"""

import time
from typing import Any, Literal

import jwt
from msgspec import Struct

from server.errors import Unauthorized

LONGEST_TOKEN = 4096  # characters; longer ones are refused unread
Kind = Literal["session", "resume"]


class Session(Struct, frozen=True):
    """The claims of a token; `person` is the verified visitor, if any, with `groups`, sorted."""

    skill: str
    origin: str
    conversation: str
    person: str | None = None
    groups: tuple[str, ...] = ()
    verified: int = 0
    """When an identity token last named the groups, in Unix seconds."""


class Sessions:
    """Signs and reads tokens, valid for `token_seconds` (session) and `resume_seconds` (resume)."""

    def __init__(self, *, token_seconds: int, resume_seconds: int, key: bytes) -> None:
        assert 0 < token_seconds <= 900
        self.token_seconds = token_seconds
        self._resume_seconds = resume_seconds
        self._key = key

    def sign(self, session: Session, kind: Kind) -> str:
        """A signed token of this kind."""
        now = int(time.time())
        lifetime = self.token_seconds if kind == "session" else self._resume_seconds
        claims: dict[str, Any] = {
            "aud": kind,
            "exp": now + lifetime,
            "skl": session.skill,
            "org": session.origin,
            "cnv": session.conversation,
        }
        if session.person is not None:
            claims["sub"] = session.person
        if session.groups:
            claims |= {"grp": session.groups, "ver": session.verified}
        return jwt.encode(claims, self._key, algorithm="HS256")

    def read(self, token: str, kind: Kind) -> Session | None:
        """The claims of `token`, or None if it is forged, expired or of the other kind."""
        if len(token) > LONGEST_TOKEN:
            return None
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=["HS256"],
                audience=kind,
                options={"require": ["exp", "skl", "org", "cnv"]},
            )
        except (jwt.InvalidTokenError, ValueError):
            return None
        groups, verified = tuple(claims.get("grp", ())), claims.get("ver", 0)
        return Session(claims["skl"], claims["org"], claims["cnv"], claims.get("sub"), groups, verified)


def expired() -> Unauthorized:
    """The same error for every refused token, so that it reveals nothing."""
    return Unauthorized("The session has ended: ask for a new one.", code="session_expired")
