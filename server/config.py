"""The server's settings, frozen values from one TOML file; no environment variable overrides them.

An invalid file raises ConfigError with the file, the field's path, and the allowed values. A URL that holds a secret is
written `file:PATH` and read from that file.
"""

import ipaddress
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from server.errors import ConfigError
from server.storage.addresses import is_address, is_loopback, is_network
from server.storage.postgres import is_postgres, misnamed
from server.storage.sqlite import MEMORY
from server.storage.toml import kept_elsewhere, read, secret

Format = Literal["text", "json"]
Level = Literal["warning", "info"]
REGISTRY = "registry:"
SETTINGS = "server.toml"  # the usual name of the file
Port = Annotated[int, Meta(ge=0, le=65535)]
Host = Annotated[str, Meta(min_length=1)]
RATE_LIMITS = re.compile(r"memory://|rediss?://[^\s]+")
SECRETS = ("ledger", "registry", "rate_limits", "webhook", "traces")  # URLs that may hold a password or token
Positive = Annotated[int, Meta(ge=1)]


class AdminLogin(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How people sign in to the admin listener: OpenID Connect, authorization code flow with PKCE."""

    issuer: Annotated[str, Meta(min_length=1)]
    """The provider's issuer, https://...; its configuration is at ISSUER/.well-known/openid-configuration."""
    client_id: Annotated[str, Meta(min_length=1)]
    """This server's client id at the provider, which ID tokens must be issued to."""
    url: Annotated[str, Meta(min_length=1)]
    """The admin listener's origin in browsers, https://...; register URL/admin/login/callback as redirect URI."""
    client_secret: str = ""
    """`file:PATH` or `env:NAME`, which hold the client's secret; empty for a public client."""
    claim: Annotated[str, Meta(min_length=1)] = "groups"
    """The ID token's claim with a person's groups or roles; dots lead into objects, as in `realm_access.roles`."""
    viewers: tuple[str, ...] = ()
    """Groups whose members may read: the page, usage, metrics and the registry."""
    editors: tuple[str, ...] = ()
    """Groups whose members may also save revisions of skills and try them."""
    publishers: tuple[str, ...] = ()
    """Groups whose members may also publish revisions and roll them back."""
    operators: tuple[str, ...] = ()
    """Groups whose members may do everything, such as POST /admin/reload."""
    scopes: tuple[str, ...] = ("openid", "profile")
    """The scopes to ask for; some providers give groups only with `groups`."""
    session_seconds: Annotated[int, Meta(ge=60, le=12 * 3600)] = 3600
    """Seconds until a person must sign in again; a group that was taken away counts until then."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The settings of `secateur serve`; paths are relative to the working directory.

    Secrets are kept in files of their own: write `file:PATH` for a URL of `ledger`, `registry`, `rate_limits`,
    `webhook` or `traces`, or for the `key` of a skill's identity, and PATH holds the value.
    """

    model: Annotated[str, Meta(min_length=1)]
    """The default model of skills that name none: an artifact's directory, or `registry:NAME@production`."""
    skills: Path
    """A skill's TOML file, or a folder of them."""
    ledger: Annotated[str, Meta(min_length=1)]
    """The ledger of tokens: an SQLite file, created if missing, or postgresql://... shared by replicas."""
    chat_template: Path | None = None
    """A Jinja file, the chat template of models that have none of their own."""
    skill_revisions: Literal["off", "read", "edit"] = "off"
    """Skills with versions, in skills.sqlite3 beside the ledger or its PostgreSQL, instead of files of the same name.

    `edit`: the admin page saves, publishes and rolls back revisions; `read`: only `secateur skills` does.
    """
    instance: Annotated[str, Meta(max_length=64)] = ""
    """This replica's name in a PostgreSQL ledger, the same after a restart; if empty, the host's name."""
    registry: str = "build/registry.sqlite3"
    """The registry that `registry:` refers to: an SQLite file or postgresql://..."""
    registry_seconds: Annotated[float, Meta(gt=0, le=3600)] = 5.0
    """Seconds between checks for a newly promoted version."""
    signers: Path | None = None
    """The file of allowed signers; artifacts must be signed by one of them. Required for models of the registry."""
    host: Host = "127.0.0.1"
    """The public listener's address."""
    port: Port = 8000
    """0 chooses a free port."""
    admin_host: Host = "127.0.0.1"
    """The address of the admin listener (metrics, usage, reloads); beyond loopback, with keys or a login."""
    admin_port: Port = 9464
    """0 chooses a free port."""
    admin_keys: Path | None = None
    """The file of admin keys (`secateur keys create --file FILE --admin metrics|all`); by default none are needed."""
    admin_login: AdminLogin | None = None
    """Requires people to sign in to the admin listener; programs go on sending keys of `admin_keys`."""
    metrics_compat: Literal["none", "vllm"] = "none"
    """`vllm` also exposes the metrics under vLLM's names, for dashboards and autoscalers made for it."""
    webhook: str = ""
    """The URL that receives each settled reply as a CloudEvent, https://...; empty sends none."""
    webhook_secret: Path | None = None
    """The file with the secret that signs these events (standardwebhooks.com: `whsec_` and base64)."""
    page_port: Port | None = None
    """The port of a demo page that embeds the widget; by default there is none."""
    page_docs: Path | None = None
    """A folder of HTML that the demo page's port serves below /docs/, so that links of answers lead somewhere."""
    slots: Annotated[int, Meta(ge=1, le=4096)] = 8
    """Replies that each model generates at once; up to half as many more of skills below their fair share."""
    context: Positive = 2048
    """The longest sequence in tokens, prompt and reply together."""
    batch_tokens: Positive = 512
    """The most tokens in one forward pass; during decode, prefill takes fewer, to keep passes near 30 ms."""
    runner: Literal["auto", "native", "transformers"] = "auto"
    """The runner; `auto` takes the native one if it is built, supports the model, and there is no CUDA device."""
    threads: Positive | None = None
    """Threads of the native runner; by default all CPUs of the process but one, which serves HTTP."""
    key_bits: Literal[8, 16] = 16
    """Bits per value of the native runner's KV cache."""
    input_bits: Literal[8, 16] = 8
    """Bits that the native runner rounds the inputs of integer weights to. 16 replies as the exported model does: it
    keeps the weights in bf16, so that they take 2 bytes each and are slower."""
    prefix_cache: Path | None = None
    """The folder where skills' own prompts outlive restarts, as the native runner's keys and values; it tells them."""
    look_up: Literal["auto", "on", "off"] = "auto"
    """Speculative decoding by prompt look-up: guesses from text that repeats; never changes the replies."""
    max_waiting: Annotated[int, Meta(ge=0)] = 64
    """Requests of one skill that may wait for a slot; further ones are answered 503."""
    max_body: Annotated[int, Meta(ge=1024)] = 1 << 20
    """The largest request body in bytes."""
    head_seconds: Annotated[float, Meta(gt=0, le=600)] = 10.0
    """Seconds that a client has to send a request's head."""
    send_seconds: Annotated[float, Meta(gt=0, le=600)] = 30.0
    """Seconds that a client may read nothing of its response before it is disconnected."""
    connections: Positive = 4096
    """Open public connections; a further one replaces the one that has waited longest for its client."""
    log: Format = "text"
    """The format of log lines; `json` writes one object per line."""
    log_level: Level = "warning"
    """The least severe level that is logged; `info` adds a line per request."""
    traces: str | None = None
    """The OTLP/HTTP endpoint for spans, as http://collector:4318/v1/traces; needs the extra `otel`."""
    drain_seconds: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    """Seconds that running replies may continue after SIGTERM."""
    keys: Path | None = None
    """The file of API keys, written by `secateur keys create --file`; changes apply from the next request."""
    rate_limits: str = "memory://"
    """The store of rate limit counters: `memory://`, this process, or `redis[s]://...`, shared by replicas."""
    rate_limits_fail: Literal["closed", "open"] = "closed"
    """While Redis does not answer: `closed` refuses what a limit holds for with 503, `open` counts in this process."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of the proxies whose X-Forwarded-For is trusted."""
    token_seconds: Annotated[int, Meta(ge=30, le=900)] = 600
    """Seconds until a widget's session token expires and must be refreshed."""
    conversation_storage: Literal["memory", "database"] = "memory"
    """Conversations are kept in this process, or in conversations.sqlite3 beside the ledger, or its PostgreSQL."""
    conversation_key: Path | None = None
    """The file of keys that encrypt these texts in the database (`secateur conversations key --file FILE`)."""
    conversation_days: Annotated[int, Meta(ge=1, le=3650)] | None = None
    """Days that a conversation is kept after its last message, instead of `conversation_seconds`."""
    conversation_seconds: Annotated[int, Meta(ge=60, le=7 * 86400)] = 4 * 3600
    """Seconds that a widget conversation is kept after its last message."""
    conversations: Positive = 10_000
    """The most conversations kept; beyond that the least recently used are dropped."""
    reply_seconds: Annotated[float, Meta(gt=0, le=3600)] = 300.0
    """The most seconds that a reply to the widget may take."""
    feedback: Path | None = None
    """The SQLite file of visitors' ratings; by default feedback.sqlite3 beside the ledger, if that is a file."""

    @property
    def feedback_file(self) -> Path:
        """The file of visitors' ratings."""
        return self.feedback or Path(self.ledger).parent / "feedback.sqlite3"

    @property
    def conversation_life(self) -> int:
        """Seconds that a conversation is kept after its last message."""
        return self.conversation_days * 86400 if self.conversation_days else self.conversation_seconds

    @property
    def conversations_at(self) -> str:
        """The database of visitors' words, as `server.storage.connection` opens it."""
        return MEMORY if self.conversation_storage == "memory" else self._beside_ledger("conversations.sqlite3")

    @property
    def skills_at(self) -> str:
        """The database of skills' revisions, as `server.storage.connection` opens it."""
        return self._beside_ledger("skills.sqlite3")

    def _beside_ledger(self, name: str) -> str:
        return self.ledger if is_postgres(self.ledger) else str(Path(self.ledger).parent / name)

    @property
    def last_seen_file(self) -> Path:
        """The file of the last moves seen in the registry: beside the ledger, or the ratings if that is no file."""
        return (self.feedback_file if "://" in self.ledger else Path(self.ledger)).parent / "registry-seen.json"


def registered(reference: str) -> str | None:
    """The NAME@ALIAS of a reference `registry:NAME@ALIAS`; None for a directory."""
    return reference.removeprefix(REGISTRY) if reference.startswith(REGISTRY) else None


def load(path: Path) -> Config:
    """Read the settings from the TOML file `path`, or from SETTINGS in the folder `path`; raises ConfigError."""
    path = path / SETTINGS if path.is_dir() else path
    config = _resolved(path, read(path, Config))
    for problem in _address_problems(config):
        raise ConfigError(f"{path}: {problem}")
    if registered(config.model) is not None and config.signers is None:
        raise ConfigError(f"{path}: a model of the registry must be signed: name the file of `signers` - at `$`")
    if config.admin_keys is None and config.admin_login is None and not is_loopback(config.admin_host):
        raise ConfigError(
            f"{path}: other machines can reach {config.admin_host!r}, so the admin listener needs keys: "
            '`secateur keys create --file admin.json --admin all` and `admin_keys = "admin.json"`, '
            "`[admin_login]`, or 127.0.0.1 - at `$.admin_host`"
        )
    if config.webhook and not is_address(config.webhook):
        raise ConfigError(
            f"{path}: a webhook is a URL that starts with https://, without user or password: "
            "`webhook_secret` authenticates the events - at `$.webhook`"
        )
    if config.feedback is None and is_postgres(config.ledger):
        raise ConfigError(
            f"{path}: the ledger is not a file, so visitors' ratings need a file of their own, as in "
            'feedback = "/var/lib/secateur/feedback.sqlite3" - at `$.feedback`'
        )
    return config


def _resolved(path: Path, config: Config) -> Config:
    """`config` with the content of the files that `file:PATH` names."""
    found: dict[str, Any] = {}
    for name in SECRETS:
        try:
            if value := getattr(config, name):
                found[name] = secret(value)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error} - at `$.{name}`") from None
    if config.admin_login is not None:
        try:
            found["admin_login"] = _resolved_login(config.admin_login)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None
    return msgspec.structs.replace(config, **found)


def _resolved_login(login: AdminLogin) -> AdminLogin:
    """`login` with the client's secret from its file or environment variable; raises ConfigError."""
    for name in ("issuer", "url"):
        text = getattr(login, name)
        address = urlsplit(text)
        if not is_address(text) or (address.scheme == "http" and not is_loopback(address.hostname or "")):
            raise ConfigError(
                f"{name} must be an address such as https://login.example; http:// is for this machine alone "
                f"- at `$.admin_login.{name}`"
            )
    if urlsplit(login.url)._replace(scheme="", netloc="").geturl() not in ("", "/"):
        raise ConfigError("url is the origin alone, such as https://secateur.example - at `$.admin_login.url`")
    if not any((login.viewers, login.editors, login.publishers, login.operators)):
        raise ConfigError("name groups of `viewers` or `operators`, else nobody may sign in - at `$.admin_login`")
    if "openid" not in login.scopes:
        raise ConfigError("the scopes must contain openid - at `$.admin_login.scopes`")
    try:
        client_secret = kept_elsewhere(login.client_secret) if login.client_secret else ""
    except ConfigError as error:
        raise ConfigError(f"{error} - at `$.admin_login.client_secret`") from None
    return msgspec.structs.replace(login, url=_origin(login.url), client_secret=client_secret)


def _origin(url: str) -> str:
    """The origin of a URL as browsers send it: lower case, without the default port."""
    parts = urlsplit(url.lower())
    return f"{parts.scheme}://{parts.netloc.removesuffix({'https': ':443', 'http': ':80'}[parts.scheme])}"


def _address_problems(config: Config) -> Iterator[str]:
    """One sentence for each setting that is neither a path nor the URL of a supported store; quotes no secret."""
    for name in ("ledger", "registry"):
        if problem := misnamed(getattr(config, name)):
            yield f"{problem} - at `$.{name}`"
    if config.feedback is not None and ("://" in str(config.feedback) or misnamed(str(config.feedback))):
        yield "ratings are kept in an SQLite file, such as feedback.sqlite3, not at a URL - at `$.feedback`"
    if config.conversation_key is not None and config.conversation_storage == "memory":
        yield 'a key encrypts a database: set conversation_storage = "database" - at `$.conversation_key`'
    for index, proxy in enumerate(config.trusted_proxies):
        if not is_network(proxy):
            yield f"{proxy!r} is not an address or network such as 10.0.0.0/8 - at `$.trusted_proxies[{index}]`"
    if not RATE_LIMITS.fullmatch(config.rate_limits):
        yield "counters are kept at memory://, redis://HOST:PORT/NUMBER or rediss://... - at `$.rate_limits`"


def warnings(config: Config) -> Iterator[str]:
    """Settings that are allowed but rarely intended."""
    for proxy in config.trusted_proxies:
        if ipaddress.ip_network(proxy).prefixlen == 0:
            yield f"`trusted_proxies` has {proxy}: any client may then choose the address that limits count"
