"""Sends each closed row to a URL as a CloudEvent (1.0, JSON batches), at least once and in order.

The ledger is the queue and holds the cursor. A batch in flight when the process dies is sent again with the same event
ids, by which receivers drop duplicates. Events hold no text.
"""

import base64
import hashlib
import hmac
import http.client
import logging
import secrets
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from server.errors import ConfigError, SecateurError
from server.metering.ledger.connection import second_connection
from server.metering.ledger.ledger import Ledger
from server.metering.usage import ROW, rows
from server.storage.database import Database, StorageError

BATCH = 100
POLL_SECONDS = 1.0
TIMEOUT = 15.0
STOP_SECONDS = 5.0
LONGEST_WAIT = 60.0
TYPE = "secateur.reply.settled.v1"
DATA = tuple(name for name in ROW if name not in ("request_id", "closed_at"))
logger = logging.getLogger(__name__)


class Undelivered(Exception):
    """The receiver did not accept a batch; the text says why."""


class Target(NamedTuple):
    """The receiver's URL; with a secret, events are signed as standardwebhooks.com describes."""

    url: str
    secret: bytes = b""

    @property
    def name(self) -> str:
        """The name of this target's cursor in the ledger, a hash of the URL: a new URL starts at the first row."""
        return f"webhook:{hashlib.sha256(self.url.encode()).hexdigest()[:16]}"


class Webhook(Collector):
    """A thread that sends the rows closed since the cursor and retries until they are accepted."""

    def __init__(self, ledger: Ledger, target: Target, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._ledger = ledger
        self._target = target
        self._poll_seconds = poll_seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhook", daemon=True)
        self.failures = 0

    def start(self) -> None:
        """Start sending."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current batch, or after STOP_SECONDS; the next start sends the rest."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def describe(self) -> Sequence[Metric]:
        """The family without a sample."""
        return [_pending()]

    def collect(self) -> Iterator[Metric]:
        """The number of undelivered closed rows; no sample while the ledger cannot be read."""
        with suppress(StorageError), self._ledger.snapshot() as database:
            [(last,)] = database.execute("SELECT value FROM cursors WHERE name = 'sequence'")
            family = _pending()
            family.add_metric((), last - self._cursor(database))
            yield family

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                with second_connection(self._ledger.where) as own:
                    # Only one replica sends: the one whose connection holds the claim.
                    while not self._stop.is_set():
                        self._wait(self._send() if own.claim(self._target.name) else self._poll_seconds)
            except (StorageError, SecateurError) as error:
                logger.error("The webhook waits for the ledger: %s", error)
            except Exception as error:  # the thread must live: the rows wait in the ledger
                logger.error("The webhook failed: %s", type(error).__name__)
            self._wait(LONGEST_WAIT / 4)

    def _send(self) -> float:
        """Send one batch and return the seconds to wait before the next."""
        with self._ledger.snapshot() as database:
            found = rows(database, self._cursor(database), BATCH)
        if not found:
            return self._poll_seconds
        try:
            post(self._target, [event(row) for row in found])
        except Undelivered as error:
            self.failures += 1
            wait = min(LONGEST_WAIT, 2.0 ** min(self.failures, 10) * 0.5) * (0.5 + secrets.randbelow(1000) / 1000)
            logger.warning("%s; retrying in %.0f s", error, wait)
            return wait
        self.failures = 0
        self._ledger.remember(self._target.name, found[-1][0]).result()
        return 0.0

    def _cursor(self, database: Database) -> int:
        found = database.execute("SELECT value FROM cursors WHERE name = ?", (self._target.name,))
        return int(found[0][0]) if found else 0

    def _wait(self, seconds: float) -> None:
        self._stop.wait(seconds)


def event(row: Sequence[Any]) -> dict[str, Any]:
    """The CloudEvent of a closed row; receivers deduplicate by its `id`."""
    fields = dict(zip(ROW, row, strict=True))
    return {
        "specversion": "1.0",
        "id": fields["request_id"],
        "source": f"/secateur/{fields['instance']}",
        "type": TYPE,
        "subject": fields["skill"],
        "time": fields["closed_at"],
        "datacontenttype": "application/json",
        "data": {name: fields[name] for name in DATA},
    }


def post(target: Target, events: Sequence[Mapping[str, Any]]) -> None:
    """POST a batch; raises Undelivered unless the response's status is 2xx."""
    address, body = urlsplit(target.url), msgspec.json.encode(events)
    kind = http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
    connection = kind(address.netloc, timeout=TIMEOUT)
    path = (address.path or "/") + (f"?{address.query}" if address.query else "")
    headers = {"Content-Type": "application/cloudevents-batch+json; charset=utf-8", **signature(target.secret, body)}
    try:
        connection.request("POST", path, body, headers)
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        raise Undelivered(f"the webhook's receiver cannot be reached ({error!r})") from None
    finally:
        connection.close()
    if not 200 <= status < 300:
        raise Undelivered(f"the webhook's receiver answered {status}")


def read_secret(path: Path) -> bytes:
    """The secret in the file `path`, written `whsec_` + base64; raises ConfigError."""
    try:
        text = path.read_text("ascii").strip()
        if not text.startswith("whsec_"):
            raise ConfigError(f"{path} is not a webhook secret: it must begin with whsec_")
        return base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError:
        raise ConfigError(f"{path} is not a webhook secret: base64 must follow whsec_") from None


def signature(secret: bytes, body: bytes) -> dict[str, str]:
    """The headers that sign `body` (standardwebhooks.com); none without a secret."""
    if not secret:
        return {}
    identity, moment = f"msg_{hashlib.sha256(body).hexdigest()[:32]}", str(int(time.time()))
    signed = hmac.digest(secret, b".".join((identity.encode(), moment.encode(), body)), "sha256")
    return {
        "webhook-id": identity,
        "webhook-timestamp": moment,
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def _pending() -> GaugeMetricFamily:
    return GaugeMetricFamily("secateur_webhook_pending_rows", "Closed rows that were not delivered yet.", labels=())
