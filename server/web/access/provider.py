"""An OpenID provider: its discovery, its keys, and codes redeemed for verified ID tokens.

OpenID Connect Core 1.0, section 3.1, with PKCE (RFC 7636) and the issuer in the response (RFC 9207). PyJWT verifies the
tokens. The methods block; call them one at a time.
"""

import base64
import hashlib
import hmac
import http.client
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import jwt
import msgspec
from msgspec import Struct

from server.config import AdminLogin
from server.errors import RequestError, Unauthorized
from server.storage.addresses import is_address, is_loopback
from server.web.access.sessions import Attempt

T = TypeVar("T")
CALLBACK = "/admin/login/callback"
CHALLENGE = "S256"
BASIC = "client_secret_basic"
DISCOVERY = "/.well-known/openid-configuration"
ALGORITHMS = ["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"]
"""Signatures that a token may have: asymmetric ones, and never `none`."""
TIMEOUT = 5.0
LONGEST = 1 << 20  # bytes of an answer
KEPT_SECONDS = 3600.0  # a discovery and its keys: a key that was withdrawn counts as long
REFETCH_SECONDS = 10.0  # between looks for a key that is not known
LONGEST_WAIT = 60.0
LONGEST_CODE = 2048
LEEWAY = 10  # seconds of clock skew
LONGEST_SUBJECT = 255  # OpenID Connect Core, section 2
logger = logging.getLogger(__name__)


class ProviderUnavailable(RequestError):
    """The provider of the admin login does not answer, or not as OpenID Connect says."""

    status = 503
    type = "server_error"
    reason = "auth"

    def __init__(self, message: str, *, retry_after: int) -> None:
        super().__init__(message, code="login_unavailable")
        self.retry_after = retry_after


class Unusable(Exception):
    """What is wrong with an answer of the provider."""


class Metadata(Struct, frozen=True):
    """What is read of the provider's discovery document."""

    issuer: str
    authorization_endpoint: str
    token_endpoint: str
    jwks_uri: str
    end_session_endpoint: str = ""
    code_challenge_methods_supported: tuple[str, ...] = (CHALLENGE,)
    token_endpoint_auth_methods_supported: tuple[str, ...] = (BASIC,)
    authorization_response_iss_parameter_supported: bool = False


class Redeemed(Struct, frozen=True):
    """The answer to a code: an ID token, or the provider's word for what is wrong."""

    id_token: str = ""
    error: str = ""


class Provider:
    """The provider at `settings.issuer`; after a failure it is left alone for 1 s, doubled up to LONGEST_WAIT."""

    def __init__(self, settings: AdminLogin, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._metadata: Metadata | None = None
        self._keys: dict[str | None, jwt.PyJWK] = {}
        self._fetched = self._keys_fetched = -KEPT_SECONDS
        self._failures = 0
        self._retry_at = 0.0

    @property
    def redirect_uri(self) -> str:
        """Where the provider sends the browser back to."""
        return self._settings.url + CALLBACK

    def authorization_url(self, attempt: Attempt) -> str:
        """Where the browser begins an attempt; raises ProviderUnavailable."""
        challenge = base64.urlsafe_b64encode(hashlib.sha256(attempt.verifier.encode()).digest()).rstrip(b"=")
        asked = {
            "response_type": "code",
            "client_id": self._settings.client_id,
            "redirect_uri": self.redirect_uri,
            "scope": " ".join(self._settings.scopes),
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": challenge.decode(),
            "code_challenge_method": CHALLENGE,
        }
        endpoint = self._tried(self._discovered).authorization_endpoint
        return f"{endpoint}{'&' if urlsplit(endpoint).query else '?'}{urlencode(asked)}"

    def logout_url(self) -> str:
        """Where the person can sign out of the provider itself; empty if it did not say. Asks nothing."""
        url = self._metadata.end_session_endpoint if self._metadata else ""
        return url if self._safe(url) else ""

    def claims(self, answer: Mapping[str, str], attempt: Attempt) -> dict[str, Any]:
        """The verified claims of the person whose browser came back with `answer`.

        Raises Unauthorized if the provider or this server refuses it, ProviderUnavailable if the provider fails.
        """
        metadata = self._tried(self._discovered)
        named = answer.get("iss")
        if named != metadata.issuer and (named or metadata.authorization_response_iss_parameter_supported):
            raise Unauthorized("The answer is not from the configured login provider.", code="login_state")
        if "error" in answer or not 0 < len(answer.get("code", "")) <= LONGEST_CODE:
            raise Unauthorized("The login provider did not let you in.", code="login_denied")
        token = self._tried(lambda: self._redeemed(metadata, answer["code"], attempt))
        if token is None:
            raise Unauthorized("The login provider does not accept the code: it serves once.", code="login_code")
        return self._verified(token, attempt)

    def _tried(self, ask: Callable[[], T]) -> T:
        """What `ask` returns; ProviderUnavailable if it fails, or failed lately."""
        if (wait := self._retry_at - self._clock()) > 0:
            raise ProviderUnavailable("The login provider did not answer lately.", retry_after=int(wait) + 1)
        try:
            found = ask()
        except Unusable as error:
            self._failures += 1
            wait = min(LONGEST_WAIT, 2.0 ** (min(self._failures, 10) - 1))
            self._retry_at = self._clock() + wait
            logger.warning(
                "Nobody can sign in to the admin page: the login provider %s; asking again in %.0f s", error, wait
            )
            raise ProviderUnavailable(f"The login provider {error}.", retry_after=int(wait) + 1) from None
        self._failures = 0
        return found

    def _discovered(self) -> Metadata:
        """The provider's metadata, at most KEPT_SECONDS old."""
        if self._metadata is None or self._clock() - self._fetched >= KEPT_SECONDS:
            found = fetch(self._settings.issuer.rstrip("/") + DISCOVERY, Metadata)
            if found.issuer != self._settings.issuer:
                raise Unusable("calls itself by another issuer than `$.admin_login.issuer`")
            for url in (found.authorization_endpoint, found.token_endpoint, found.jwks_uri):
                if not self._safe(url):
                    raise Unusable("gives an address that is not https://")
            if CHALLENGE not in found.code_challenge_methods_supported:
                raise Unusable(f"does not support PKCE with {CHALLENGE}")
            self._metadata, self._fetched = found, self._clock()
        return self._metadata

    def _safe(self, url: str) -> bool:
        """Whether `url` may be asked: https://, or http:// on this machine if the issuer is there."""
        parts = urlsplit(url) if is_address(url) else None
        if parts is None or parts.scheme == "https":
            return parts is not None
        return all(is_loopback(host or "") for host in (parts.hostname, urlsplit(self._settings.issuer).hostname))

    def _redeemed(self, metadata: Metadata, code: str, attempt: Attempt) -> str | None:
        """The ID token for a code; None if the provider refuses the code."""
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self.redirect_uri,
            "code_verifier": attempt.verifier,
        }
        name, secret, basic = self._settings.client_id, self._settings.client_secret, ""
        if secret and BASIC in metadata.token_endpoint_auth_methods_supported:
            pair = f"{quote(name, safe='')}:{quote(secret, safe='')}"  # RFC 6749, section 2.3.1
            basic = "Basic " + base64.b64encode(pair.encode()).decode()
        else:
            form |= {"client_id": name, **({"client_secret": secret} if secret else {})}
        found = fetch(metadata.token_endpoint, Redeemed, form, basic)
        if found.error in ("invalid_client", "unauthorized_client"):
            raise Unusable(f"answered {found.error}: check `client_id` and `client_secret`")
        if not found.id_token and not found.error:
            raise Unusable("gives no ID token: the scopes must contain openid")
        return found.id_token or None

    def _verified(self, token: str, attempt: Attempt) -> dict[str, Any]:
        """The claims of an ID token; Unauthorized unless everything about it is right."""
        try:
            key = self._tried(lambda: self._key(jwt.get_unverified_header(token).get("kid")))
            claims: dict[str, Any] = jwt.decode(
                token,
                key,
                algorithms=ALGORITHMS,
                audience=self._settings.client_id,
                issuer=self._settings.issuer,
                leeway=LEEWAY,
                options={"require": ["iss", "sub", "aud", "exp", "iat", "nonce"]},
            )
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError) as error:
            raise refused_token(type(error).__name__) from None
        if not hmac.compare_digest(str(claims["nonce"]).encode(), attempt.nonce.encode()):
            raise refused_token("nonce")
        if claims.get("azp", self._settings.client_id) != self._settings.client_id:
            raise refused_token("azp")
        if not isinstance(claims["sub"], str) or not 0 < len(claims["sub"]) <= LONGEST_SUBJECT:
            raise refused_token("sub")
        return claims

    def _key(self, name: str | None) -> jwt.PyJWK:
        """The key of this id, fetched anew if it is not known: providers rotate their keys."""
        age = self._clock() - self._keys_fetched
        if age >= KEPT_SECONDS or (name not in self._keys and age >= REFETCH_SECONDS):
            try:
                found = jwt.PyJWKSet.from_dict(fetch(self._discovered().jwks_uri, dict)).keys
            except (jwt.PyJWTError, ValueError, TypeError):
                raise Unusable("gives no usable keys") from None
            self._keys = {key.key_id: key for key in found if key.public_key_use in (None, "sig")}
            self._keys_fetched = self._clock()
        if name is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        if name not in self._keys:
            raise jwt.InvalidKeyError
        return self._keys[name]


def refused_token(what: str) -> Unauthorized:
    """The refusal of an ID token, with the check that failed."""
    return Unauthorized(f"The login provider's ID token is not valid here ({what}).", code="login_token")


def fetch(url: str, kind: type[T], form: Mapping[str, str] | None = None, authorization: str = "") -> T:
    """The JSON at `url` as `kind`, or that of the answer to a POST of `form`; follows no redirect. Raises Unusable.

    With a form, the object of a 400 or 401 is returned too: it says which of the two parties is wrong.
    """
    address = urlsplit(url)
    opened = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = opened(address.netloc, timeout=TIMEOUT)
    headers = {"Accept": "application/json", **({"Authorization": authorization} if authorization else {})}
    if form is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    path = (address.path or "/") + (f"?{address.query}" if address.query else "")
    try:
        connection.request("GET" if form is None else "POST", path, None if form is None else urlencode(form), headers)
        response = connection.getresponse()
        text = response.read(LONGEST + 1)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Unusable(f"does not answer ({type(error).__name__})") from None
    finally:
        connection.close()
    if response.status != 200 and not (form is not None and response.status in (400, 401)):
        raise Unusable(f"answered {response.status}")
    try:
        return msgspec.json.decode(text if len(text) <= LONGEST else b"", type=kind)
    except msgspec.DecodeError:
        raise Unusable("did not answer as OpenID Connect says") from None
