"""What can go wrong, as one tree; each class knows its HTTP status and OpenAI's type for it.

SecateurError
├── RequestError                   the client's mistake; answered in OpenAI's error shape
│   ├── InvalidRequest        400  `param` names the field
│   ├── Unauthorized          401
│   ├── Forbidden             403
│   ├── NotFound              404
│   ├── TooSlow               408
│   ├── Conflict              409
│   ├── TooLarge              413
│   ├── RateLimited           429  carries Retry-After, in whole seconds
│   ├── BudgetExceeded        429  carries Retry-After: when the skill's next day or month begins
│   └── Overloaded            503  carries Retry-After, in whole seconds
├── ConfigError                    the operator's mistake in a TOML file: what, where, what is allowed
├── ArtifactError                  a checkpoint that is missing, damaged or not what its lineage says
│   └── SignatureError             not signed, by nobody who counts, or not what was signed
├── ExportError                    what another format cannot hold, or an output that cannot be written
├── RegistryError                  a registry that cannot be used, or what its rules do not allow
├── Busy                           another process holds the lock on a file or directory
├── Unlockable                     a file system without locks
└── EngineFailed              500  the engine stopped; the message says why
"""

from collections.abc import Mapping
from typing import Literal, get_args

Reason = Literal[
    "auth", "origin", "requests", "tokens", "sessions", "concurrency", "budget", "body", "context", "conflict",
    "unknown", "queue", "draining", "store", "ledger",
]  # fmt: skip
REASONS: tuple[Reason, ...] = get_args(Reason)


class SecateurError(Exception):
    """Base of everything raised on purpose; its text is one sentence for the person who reads it."""

    status = 500
    type = "server_error"
    reason: Reason | None = None
    """Why a request was refused, as metrics count it; None is no refusal but a failure."""

    def __init__(
        self, message: str, *, param: str | None = None, code: str | None = None, reason: Reason | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason or self.reason
        self.message = message
        self.param = param
        self.code = code


class RequestError(SecateurError):
    """A request that cannot be served as it was sent."""

    type = "invalid_request_error"
    reason: Reason | None = "body"


class InvalidRequest(RequestError):
    """A field is missing, of the wrong type or out of range."""

    status = 400


class Unauthorized(RequestError):
    """No credential, or one that is not known."""

    status = 401
    type = "authentication_error"
    reason = "auth"


class Forbidden(RequestError):
    """A known credential or origin that may not use this skill."""

    status = 403
    type = "permission_error"
    reason = "auth"


class NotFound(RequestError):
    """No such skill or path."""

    status = 404
    reason = "unknown"


class TooLarge(RequestError):
    """The body exceeds the limit, which the message says."""

    status = 413


class TooSlow(RequestError):
    """The body did not arrive in time."""

    status = 408


class Conflict(RequestError):
    """The request does not fit the state of what it names."""

    status = 409
    type = "conflict_error"
    reason = "conflict"


class RateLimited(RequestError):
    """A limit is used up for now; the client may come back after `retry_after` seconds."""

    status = 429
    type = "rate_limit_error"

    def __init__(
        self, message: str, *, retry_after: int, reason: Reason, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(message, code="rate_limited", reason=reason)
        self.retry_after = retry_after
        self.headers = headers or {}


class BudgetExceeded(RequestError):
    """The skill has used its tokens of the day or month; `retry_after` seconds later the next one begins."""

    status = 429
    type = "insufficient_quota"
    reason = "budget"

    def __init__(self, skill: str, period: str, *, retry_after: int) -> None:
        super().__init__(
            f"The skill {skill!r} has no tokens left for this {period} that fit the request.", code="budget_exceeded"
        )
        self.retry_after = retry_after


class Overloaded(RequestError):
    """The queue is full or the server is draining; the client may come back after `retry_after` seconds."""

    status = 503
    type = "server_error"

    def __init__(self, message: str, *, retry_after: int, reason: Reason = "queue") -> None:
        super().__init__(message, code="overloaded", reason=reason)
        self.retry_after = retry_after


class ConfigError(SecateurError):
    """A configuration file that cannot be used."""


class ArtifactError(SecateurError):
    """A checkpoint directory that cannot be used."""


class SignatureError(ArtifactError):
    """An artifact or a statement that nobody who counts has signed as it is, or a key that cannot sign."""


class ExportError(SecateurError):
    """An artifact that another format cannot hold, or a place that cannot be written to; nothing was left behind."""


class RegistryError(SecateurError):
    """A registry that cannot be used, or something that its rules do not allow; nothing was changed."""


class Busy(SecateurError):
    """Another process holds the lock on a file or directory; `process` is its id as the lock file has it."""

    def __init__(self, message: str, *, process: str = "") -> None:
        super().__init__(message)
        self.process = process


class Unlockable(SecateurError):
    """A file system without locks."""


class EngineFailed(SecateurError):
    """The engine's loop ended with an error; every waiting request receives it."""


def reason(error: Exception) -> str:
    """Our own sentences as they are, and anything else so that it can be looked for."""
    return str(error) if isinstance(error, SecateurError) else repr(error)
