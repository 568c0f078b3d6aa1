"""Entries of the audit log that commands write, which wait until each is durable."""

from contextlib import closing

from server.metering.audit.chain import Event
from server.metering.audit.log import AuditLog


def record(ledger: str, event: Event) -> None:
    """Write an event into the audit log of `ledger`; raises LedgerUnavailable if it could not be."""
    with closing(AuditLog(ledger)) as log:
        log.put(event).result()
