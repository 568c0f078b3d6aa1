"""The exceptions as one tree; each class has its HTTP status and its type in OpenAI's error shape.

SecateurError
├── RequestError                   the client's mistake
│   ├── InvalidRequest        400  `param` names the field
│   ├── Unauthorized          401
│   ├── Forbidden             403
│   ├── NotFound              404
│   ├── TooSlow               408
│   ├── Conflict              409
│   ├── TooLarge              413
│   ├── Unsupported           415
│   ├── RateLimited           429  carries Retry-After, in whole seconds
│   ├── BudgetExceeded        429  carries Retry-After: when the next day or month begins
│   └── Overloaded            503  carries Retry-After, in whole seconds
├── ConfigError                    the operator's mistake in a TOML file: what, where, what is allowed
├── ArtifactError                  a checkpoint that is missing, damaged or contradicts its lineage
│   └── SignatureError             not signed, not by an allowed signer, or changed since
├── KnowledgeError                 documents that cannot be built into a knowledge
├── ExportError                    an artifact that a format cannot hold, or an unwritable output
├── RegistryError                  an unusable registry, or a change against its rules
├── Busy                           another process holds the lock on a file or directory
├── Unlockable                     a file system without locks
└── EngineFailed              500  the engine stopped; the message says why
"""

from collections.abc import Mapping
from typing import Literal, get_args

Reason = Literal[
    "auth", "origin", "requests", "tokens", "sessions", "concurrency", "budget", "body", "context", "conflict",
    "unknown", "queue", "draining", "store", "ledger", "handover",
]  # fmt: skip
REASONS: tuple[Reason, ...] = get_args(Reason)


class SecateurError(Exception):
    """Base of all deliberate errors; the text is one sentence for the user."""

    status = 500
    type = "server_error"
    reason: Reason | None = None
    """The reason of a refusal, a label of metrics; None for a failure."""

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
    """A missing or unknown credential."""

    status = 401
    type = "authentication_error"
    reason = "auth"


class Forbidden(RequestError):
    """A known credential or origin without access to this skill."""

    status = 403
    type = "permission_error"
    reason = "auth"


class NotFound(RequestError):
    """No such skill or path."""

    status = 404
    reason = "unknown"


class TooLarge(RequestError):
    """The body exceeds the limit named in the message."""

    status = 413


class Unsupported(RequestError):
    """The body is encoded in a way that the server does not decode."""

    status = 415


class TooSlow(RequestError):
    """The body did not arrive in time."""

    status = 408


class Conflict(RequestError):
    """The request conflicts with the current state of its target."""

    status = 409
    type = "conflict_error"
    reason = "conflict"


class RateLimited(RequestError):
    """A rate limit is exhausted; the client may retry after `retry_after` seconds."""

    status = 429
    type = "rate_limit_error"

    def __init__(
        self,
        message: str,
        *,
        retry_after: int,
        reason: Reason,
        headers: Mapping[str, str] | None = None,
        code: str = "rate_limited",
    ) -> None:
        super().__init__(message, code=code, reason=reason)
        self.retry_after = retry_after
        self.headers = headers or {}


class BudgetExceeded(RequestError):
    """A skill or an API key has used up its tokens of the day or month; the next begins in `retry_after` seconds."""

    status = 429
    type = "insufficient_quota"
    reason = "budget"

    def __init__(self, message: str, *, code: str, retry_after: int) -> None:
        super().__init__(message, code=code)
        self.retry_after = retry_after


class Overloaded(RequestError):
    """The queue is full or the server is draining; the client may retry after `retry_after` seconds."""

    status = 503
    type = "server_error"

    def __init__(self, message: str, *, retry_after: int, reason: Reason = "queue") -> None:
        super().__init__(message, code="overloaded", reason=reason)
        self.retry_after = retry_after


class ConfigError(SecateurError):
    """An unusable configuration; the message says what, where and what is allowed."""


class ArtifactError(SecateurError):
    """A checkpoint directory that is missing, damaged or contradicts its lineage."""


class SignatureError(ArtifactError):
    """An artifact or statement without a valid signature of an allowed signer, or a key that cannot sign."""


class KnowledgeError(SecateurError):
    """Documents that cannot be built into a knowledge; an earlier artifact stays as it was."""


class ExportError(SecateurError):
    """An artifact that a format cannot hold, or an output that cannot be written; nothing is left behind."""


class RegistryError(SecateurError):
    """An unusable registry, or a change against its rules; nothing was changed."""


class Busy(SecateurError):
    """Another process holds the lock on a file or directory; `process` is its id as the lock file has it."""

    def __init__(self, message: str, *, process: str = "") -> None:
        super().__init__(message)
        self.process = process


class Unlockable(SecateurError):
    """A file system without locks."""


class EngineFailed(SecateurError):
    """The engine's loop ended with an error, which every waiting request receives."""


def reason(error: Exception) -> str:
    """The text of a SecateurError, or the repr of any other exception, for logs."""
    return str(error) if isinstance(error, SecateurError) else repr(error)
