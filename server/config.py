"""The server's settings: frozen values from one TOML file, and nothing else decides them.

A file that cannot be used raises ConfigError with the file, the path within it, and what would be allowed.
"""

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from server.errors import ConfigError

T = TypeVar("T")
Format = Literal["text", "json"]
Level = Literal["warning", "info"]
REGISTRY = "registry:"
Port = Annotated[int, Meta(ge=0, le=65535)]
Positive = Annotated[int, Meta(ge=1)]


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `secateur serve` is told; paths are relative to the working directory."""

    model: Annotated[str, Meta(min_length=1)]
    """The artifact's directory, or `registry:NAME@production`; it answers the skills that name none."""
    skills: Path
    """One skill's TOML file, or a folder of them."""
    ledger: Annotated[str, Meta(min_length=1)]
    """Where tokens are counted: an SQLite file, made if it does not exist, or postgresql://... for many replicas."""
    instance: Annotated[str, Meta(max_length=64)] = ""
    """This replica's name in a PostgreSQL ledger; the host's name if empty. It should outlive a restart."""
    registry: str = "build/registry.sqlite3"
    """Where `registry:` looks: a file or postgresql://..."""
    registry_seconds: Annotated[float, Meta(gt=0, le=3600)] = 5.0
    """How often it is asked whether another version was promoted."""
    signers: Path | None = None
    """Who may sign: the artifact must be signed by one of them. A model of the registry needs this."""
    host: str = "127.0.0.1"
    """The public listener's address."""
    port: Port = 8000
    """0 takes a free port."""
    admin_host: str = "127.0.0.1"
    """Where metrics, usage and reloads are; other than loopback only with `admin_keys`."""
    admin_port: Port = 9464
    """0 takes a free port."""
    admin_keys: Path | None = None
    """The file of keys that open it (`secateur keys create --file FILE --admin metrics|all`); left out, it has none."""
    metrics_compat: Literal["none", "vllm"] = "none"
    """`vllm` adds the names of vLLM's metrics that dashboards and autoscalers know."""
    webhook: str = ""
    """Where each settled reply is sent as a CloudEvent: https://..."""
    webhook_secret: Path | None = None
    """A file with the secret that signs them (standardwebhooks.com: `whsec_` and base64)."""
    page_port: Port | None = None
    """Where to show a host page of our own that embeds the widget; left out, there is none."""
    slots: Annotated[int, Meta(ge=1, le=4096)] = 8
    """Replies generated at once by each model."""
    context: Positive = 2048
    """Tokens of prompt and reply together."""
    batch_tokens: Positive = 512
    """The most ids computed in one pass; fewer while replies are being read, as many as some 30 ms allow."""
    runner: Literal["auto", "native", "transformers"] = "auto"
    """What computes; `auto`: the native runner where it is built and has a plan, and where there is no CUDA device."""
    threads: Positive | None = None
    """Of the native runner; left out, as many as the process may use, less one for HTTP."""
    key_bits: Literal[8, 16] = 16
    """Of the keys and values that the native runner keeps of each text."""
    look_up: Literal["auto", "on", "off"] = "auto"
    """Whether replies go on in guesses from their own text, where it repeats itself; never changes what they say."""
    max_waiting: Annotated[int, Meta(ge=0)] = 64
    """Requests queued beyond the slots; more are answered 503."""
    max_body: Annotated[int, Meta(ge=1024)] = 1 << 20
    """Bytes of a request's body."""
    head_seconds: Annotated[float, Meta(gt=0, le=600)] = 10.0
    """How long a client may take to send a request's head."""
    send_seconds: Annotated[float, Meta(gt=0, le=600)] = 30.0
    """How long a client may take no byte of its answer before it is cut."""
    connections: Positive = 4096
    """Open connections of visitors; one more takes the place of the one that owes a request the longest."""
    log: Format = "text"
    """`json` writes one object a line."""
    log_level: Level = "warning"
    """`info` adds one line for each request."""
    traces: str | None = None
    """Where spans are sent by OTLP over HTTP, as http://collector:4318/v1/traces; needs the extra `otel`."""
    drain_seconds: Annotated[float, Meta(ge=0, le=3600)] = 30.0
    """How long running replies may go on after SIGTERM."""

    keys: Path | None = None
    """The file of API keys that `secateur keys create --file` writes; a change counts from the next request on."""
    rate_limits: Annotated[str, Meta(pattern=r"^(memory://|rediss?://.+)$")] = "memory://"
    """Where requests and tokens a minute are counted: in this process, or in a Redis that replicas share."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses or networks of proxies whose X-Forwarded-For is believed; left out, none."""
    token_seconds: Annotated[int, Meta(ge=30, le=900)] = 600
    """How long a widget's token lives before it must be refreshed."""
    conversation_seconds: Annotated[int, Meta(ge=60, le=7 * 86400)] = 4 * 3600
    """How long the widget's conversations are kept after their last message, in memory only."""
    conversations: Positive = 10_000
    """How many are kept; beyond that the least recently used are forgotten."""
    reply_seconds: Annotated[float, Meta(gt=0, le=3600)] = 300.0
    """The longest that one reply to the widget may take."""
    feedback: Path | None = None
    """The SQLite file of visitors' ratings; left out, feedback.sqlite3 beside the ledger, which must be a file then."""

    @property
    def feedback_file(self) -> Path:
        """Where ratings are kept."""
        return self.feedback or Path(self.ledger).parent / "feedback.sqlite3"


def registered(reference: str) -> str | None:
    """What `registry:` names, or None where a model is a directory."""
    return reference.removeprefix(REGISTRY) if reference.startswith(REGISTRY) else None


def load(path: Path) -> Config:
    """The settings in the TOML file `path`."""
    config = read(path, Config)
    if registered(config.model) is not None and config.signers is None:
        raise ConfigError(f"{path}: a model of the registry must be signed: name the file of `signers` - at `$`")
    if config.admin_keys is None and not is_loopback(config.admin_host):
        raise ConfigError(
            f"{path}: other machines can reach {config.admin_host!r}, so the admin listener needs keys: "
            '`secateur keys create --file admin.json --admin all` and `admin_keys = "admin.json"`, '
            "or 127.0.0.1 - at `$.admin_host`"
        )
    for index, proxy in enumerate(config.trusted_proxies):
        if not _is_network(proxy):
            raise ConfigError(
                f"{path}: {proxy!r} is no address or network such as 10.0.0.0/8 - at `$.trusted_proxies[{index}]`"
            )
    if config.webhook and not is_address(config.webhook):
        raise ConfigError(
            f"{path}: a webhook is an address that begins with https://, without a name or password in it: "
            "`webhook_secret` signs what is sent - at `$.webhook`"
        )
    if config.feedback is None and "://" in config.ledger:
        raise ConfigError(
            f"{path}: the ledger is no file beside which visitors' ratings could lie: name their own file, as in "
            'feedback = "/var/lib/secateur/feedback.sqlite3" - at `$.feedback`'
        )
    return config


def is_address(url: str) -> bool:
    """Whether something can be posted to `url` as it is."""
    try:
        address = urlsplit(url)
        url.encode("ascii")
        address.netloc.encode("idna")
        named = bool(address.hostname) and address.port != 0  # asking for the port raises where it is none
    except ValueError:
        return False
    return named and address.scheme in ("http", "https") and "@" not in address.netloc and not set(url) & set(" \t\r\n")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a listener bound to `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_network(text: str) -> bool:
    try:
        return bool(ipaddress.ip_network(text))
    except ValueError:
        return False


def read(path: Path, kind: type[T]) -> T:
    """The TOML file `path` as a struct of `kind`; raises ConfigError for anything that is not one."""
    try:
        return msgspec.toml.decode(path.read_bytes(), type=kind, dec_hook=_path)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {_explain(str(error), kind)}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}") from None


def _path(kind: type, value: Any) -> Path:
    if kind is Path and isinstance(value, str) and value:
        return Path(value)
    raise ValueError("Expected a path")


def _explain(message: str, kind: type) -> str:
    """msgspec's message, with the field's path always shown and the known names where one is unknown."""
    where = "" if "`$" in message else " - at `$`"
    if "unknown field" in message:
        fields = [field.name for field in msgspec.structs.fields(kind)]
        own_first = dict.fromkeys((*kind.__annotations__, *fields))
        return f"{message}{where}; known fields are {', '.join(own_first)}"
    return message.replace(" | null", "") + where  # TOML has no null
