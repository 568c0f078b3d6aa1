"""Signed tokens of the widget: one for a quarter of an hour at most, and one that resumes the conversation later.

Both are bound to skill, origin, conversation and person. The key is made at start and never written: conversations live
in this process's memory, so a token of another process would open nothing.
"""

import secrets
import time
from typing import Any, Literal

import jwt
from msgspec import Struct

from server.errors import Unauthorized

LONGEST_TOKEN = 4096  # characters: more is not looked at
Kind = Literal["session", "resume"]


class Session(Struct, frozen=True):
    """What a token says of its bearer."""

    skill: str
    origin: str
    conversation: str
    person: str | None = None


class Sessions:
    """Signs and reads tokens; `token_seconds` is the life of a session, `resume_seconds` of the way back to it."""

    def __init__(self, *, token_seconds: int, resume_seconds: int, key: bytes | None = None) -> None:
        assert 0 < token_seconds <= 900
        self.token_seconds = token_seconds
        self._resume_seconds = resume_seconds
        self._key = key or secrets.token_bytes(32)

    def sign(self, session: Session, kind: Kind) -> str:
        """A token for `session`."""
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
        return jwt.encode(claims, self._key, algorithm="HS256")

    def read(self, token: str, kind: Kind) -> Session | None:
        """What `token` says, or None if it is forged, expired or of the other kind."""
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
        return Session(claims["skl"], claims["org"], claims["cnv"], claims.get("sub"))


def expired() -> Unauthorized:
    """One answer for every token that opens nothing."""
    return Unauthorized("The session has ended: ask for a new one.", code="session_expired")
