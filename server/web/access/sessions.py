"""Cookies of the admin login: an attempt to sign in, then a session; both encrypted and authenticated by Fernet.

The keys are random and live in this process alone: a restart, or another replica, asks people to sign in again.
"""

import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Literal, TypeVar

import msgspec
from cryptography.fernet import Fernet, InvalidToken
from msgspec import Struct, field
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.types import Scope

from server.config import AdminLogin

Role = Literal["viewer", "editor", "publisher", "operator"]
ROLES: tuple[Role, ...] = ("viewer", "editor", "publisher", "operator")
"""Each may do what those before it may."""
T = TypeVar("T", bound=Struct)
ATTEMPT_SECONDS = 600
MOST_SPENT = 10_000


def _random() -> str:
    return secrets.token_urlsafe(32)


class Attempt(Struct, frozen=True):
    """One attempt to sign in, kept by the browser that began it."""

    state: str = field(default_factory=_random)
    nonce: str = field(default_factory=_random)
    verifier: str = field(default_factory=_random)
    """PKCE's code verifier (RFC 7636): 43 characters."""


class Person(Struct, frozen=True):
    """Somebody who signed in."""

    subject: str
    """The provider's identifier of the person, `sub`."""
    name: str
    """What the page shows: the preferred name, the address, or the subject."""
    role: Role
    session: str = field(default_factory=_random)

    @property
    def who(self) -> str:
        """The person's name in the audit log."""
        return who_is(self.subject)


def who_is(subject: str) -> str:
    """A subject's name in the audit log; the prefix keeps subjects apart from keys and accounts."""
    return f"oidc:{subject}"


class Sessions:
    """Reads and writes both cookies; belongs to the asyncio loop."""

    def __init__(self, settings: AdminLogin) -> None:
        self.origin = settings.url
        self.seconds = settings.session_seconds
        self._secure = settings.url.startswith("https://")
        prefix = "__Host-" if self._secure else ""
        self._attempts = _Sealed(f"{prefix}secateur-login", Attempt, ATTEMPT_SECONDS)
        self._people = _Sealed(f"{prefix}secateur-admin", Person, self.seconds)
        self._used = _Spent(ATTEMPT_SECONDS)
        self._ended = _Spent(self.seconds)

    def begin(self, response: Response) -> Attempt:
        """Start an attempt and give the browser its cookie."""
        attempt = Attempt()
        self._set(response, self._attempts.name, self._attempts.seal(attempt), ATTEMPT_SECONDS)
        return attempt

    def take_attempt(self, scope: Scope, state: str) -> Attempt | None:
        """The attempt that this browser began with this state; None if there is none, or it was taken before."""
        attempt = self._attempts.read(scope)
        if attempt is None or not secrets.compare_digest(attempt.state.encode(), state.encode()):
            return None
        return attempt if self._used.add(attempt.state) else None

    def admit(self, response: Response, person: Person) -> None:
        """Give the browser a session, and take the attempt's cookie."""
        self._set(response, self._people.name, self._people.seal(person), self.seconds)
        self._set(response, self._attempts.name, "", 0)

    def person(self, scope: Scope) -> Person | None:
        """Who sent the request; None without a session that is authentic, young enough and not ended."""
        person = self._people.read(scope)
        return None if person is None or person.session in self._ended else person

    def end(self, response: Response, person: Person) -> None:
        """End the session, also for copies of its cookie."""
        self._ended.add(person.session)
        self._set(response, self._people.name, "", 0)

    def _set(self, response: Response, name: str, value: str, seconds: int) -> None:
        # Lax: the provider's redirect to the callback is a navigation from another site.
        response.set_cookie(name, value, max_age=seconds, secure=self._secure, httponly=True, samesite="lax")


class _Sealed(Generic[T]):
    """Values of one kind in a cookie, for at most `seconds`."""

    def __init__(self, name: str, kind: type[T], seconds: int) -> None:
        self.name = name
        self._kind = kind
        self._seconds = seconds
        self._fernet = Fernet(Fernet.generate_key())

    def seal(self, value: T) -> str:
        return self._fernet.encrypt(msgspec.json.encode(value)).decode()

    def read(self, scope: Scope) -> T | None:
        """The value in the request's cookie; None without one that this process sealed lately."""
        sealed = HTTPConnection(scope).cookies.get(self.name, "")
        try:
            return msgspec.json.decode(self._fernet.decrypt(sealed, ttl=self._seconds), type=self._kind)
        except InvalidToken:
            return None


class _Spent:
    """Ids that count no longer, remembered for `seconds`."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._until: OrderedDict[str, float] = OrderedDict()

    def add(self, name: str) -> bool:
        """Remember an id; returns whether it was new."""
        now = self._clock()
        while self._until and next(iter(self._until.values())) < now:
            self._until.popitem(last=False)
        if name in self._until:
            return False
        self._until[name] = now + self._seconds
        if len(self._until) > MOST_SPENT:
            self._until.popitem(last=False)
        return True

    def __contains__(self, name: str) -> bool:
        return name in self._until
