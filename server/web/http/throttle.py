"""Refused requests of a listener: wrong keys are throttled by client network, counted, recorded and warned of.

A correct key is never throttled, so that nobody can lock an office out.
"""

import asyncio
import logging
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable

from server.errors import RateLimited, RequestError
from server.metering.audit.chain import Event
from server.metering.refusals import KeyFailures, ListenerName
from server.skills.limits import client_network

BURST = 10  # wrong keys of one network that are answered 401 at once; further ones are answered 429
REFILL_SECONDS = 6.0  # between further wrong keys that are answered 401 instead of 429
MOST_NETWORKS = 10_000
MOST_ENTRIES = 60  # refused requests a minute with an audit entry of their own; the others share one
REPORT_SECONDS = 60.0
WRONG_KEY = frozenset({"invalid_api_key", "api_key_expired", "login_state", "login_code", "login_token"})
"""Codes of refusals that a guess would have; `login_` ones are answers to the admin login."""
OTHERS = "others"
logger = logging.getLogger(__name__)


class KeyThrottle:
    """Allows each client network a burst of wrong keys, then one every REFILL_SECONDS (GCRA)."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._due: OrderedDict[str, float] = OrderedDict()
        """When each network's burst is whole again; the one that failed least recently is first."""

    def wait(self, network: str) -> float:
        """Count a wrong key; returns 0 if it is within the network's burst, else seconds until the next one is."""
        now = self._clock()
        due = max(now, self._due.get(network, now))
        wait = due - now - (BURST - 1) * REFILL_SECONDS
        if wait <= 0:
            self._due[network] = due + REFILL_SECONDS
        self._due.move_to_end(network)
        if len(self._due) > MOST_NETWORKS:
            self._due.popitem(last=False)
        return max(0.0, wait)


class Refused:
    """Throttles, counts and records the refused requests of `listener`; belongs to the asyncio loop.

    With `listed`, each has an audit entry, up to MOST_ENTRIES a minute; the others share one entry a minute.
    """

    def __init__(
        self,
        listener: ListenerName,
        failures: KeyFailures,
        record: Callable[[Event], object],
        *,
        listed: bool,
        throttle: KeyThrottle | None = None,
    ) -> None:
        self._listener: ListenerName = listener
        self._failures = failures
        self._record = record
        self._most = MOST_ENTRIES if listed else 0
        self._throttle = throttle or KeyThrottle()
        self._wrong: Counter[str] = Counter()
        self._listed = self._unlisted = 0
        self._warned = False
        self._timer: asyncio.TimerHandle | None = None

    def judge(self, refusal: RequestError, address: str, who: str, object: str) -> RequestError:
        """Count and record a refusal; returns the error to send: RateLimited for too many wrong keys."""
        answer, network = refusal, client_network(address)
        if refusal.code in WRONG_KEY:
            self._failures.count(self._listener)
            self._wrong[network if network in self._wrong or len(self._wrong) < MOST_NETWORKS else OTHERS] += 1
            if wait := self._throttle.wait(network):
                answer = RateLimited(
                    "Too many wrong keys from this address; a correct one is accepted at once.",
                    retry_after=math.ceil(wait),
                    reason="auth",
                )
        if answer is refusal and self._listed < self._most:
            self._listed += 1
            self._record(Event(who, f"{self._listener}.refused", object, address, refusal.code or str(refusal.status)))
        else:
            self._unlisted += 1
        if self._timer is None or (self._wrong and not self._warned):
            self._report()
        return answer

    def close(self) -> None:
        """Report the refusals since the last report, and schedule no other."""
        if self._timer is not None:
            self._timer.cancel()
            self._tell()

    def _report(self) -> None:
        """Report the refusals since the last report, and schedule the next report in a minute."""
        if self._timer is not None:
            self._timer.cancel()
        self._tell()
        self._timer = asyncio.get_running_loop().call_later(REPORT_SECONDS, self._tick)

    def _tick(self) -> None:
        active = self._wrong or self._listed or self._unlisted
        self._timer, self._warned, self._listed = None, False, 0
        if active:
            self._report()

    def _tell(self) -> None:
        """Log a warning about wrong keys, and write one audit entry for all requests refused without their own."""
        [(network, most)] = self._wrong.most_common(1) or [("", 0)]
        if self._wrong:
            self._warned = True
            shown = (self._listener, self._wrong.total(), len(self._wrong), most, network)
            logger.warning("Wrong keys at the %s listener: %d, from networks: %d, most (%d) from %s", *shown)
        if self._unlisted:
            result = f"{self._unlisted} without entries of their own"
            self._record(Event("", f"{self._listener}.refused", "several requests", network, result))
        self._wrong.clear()
        self._unlisted = 0
