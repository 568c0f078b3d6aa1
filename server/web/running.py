"""What a server is made of, and the order in which its parts start and stop."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from anyio import to_thread
from msgspec import Struct

from server.chat.conversation.talk import Talk
from server.chat.kept.feedback import Feedback
from server.chat.kept.texts import Texts
from server.config import Config
from server.metering.ledger.ledger import Ledger
from server.metering.webhooks import Webhook
from server.models.loading import Loader
from server.models.reload import Reloader
from server.models.rollout import Rollout
from server.models.shelf import Shelf
from server.skills.catalogue import Skills
from server.skills.limits import RateLimits
from server.skills.revisions.store import Revisions
from server.web.audit import Auditing
from server.web.http.traces import Traces
from server.web.process import ProcessMetrics

SILENCE_SECONDS = 1.0
"""Between checks that the ledger answers."""


class Parts(Struct, frozen=True):
    """What is opened before the apps are built; `loader` and `shelf` open what a reload adds."""

    config: Config
    skills: Skills
    ledger: Ledger
    rollout: Rollout
    loader: Loader
    shelf: Shelf


class Closing(NamedTuple):
    """The parts that are closed after the last reply."""

    feedback: Feedback
    rate_limits: RateLimits
    traces: Traces
    webhook: Webhook | None
    process: ProcessMetrics
    auditing: Auditing
    texts: Texts
    talk: Talk
    revisions: Revisions | None


@asynccontextmanager
async def running(parts: Parts, reloader: Reloader, closing: Closing) -> AsyncIterator[None]:
    """Run the engines, the webhook and the registry's follower; on exit stop them and close the ledger."""
    await closing.auditing.start(parts.rollout)
    parts.rollout.start()
    silence = asyncio.create_task(report_silence(parts.ledger))
    if closing.webhook is not None:
        closing.webhook.start()
    following = asyncio.create_task(reloader.follow(parts.config.registry_seconds))
    watching = asyncio.create_task(closing.process.watch())
    counting = asyncio.create_task(closing.rate_limits.store.watch())
    try:
        async with closing.talk.running():
            yield
    finally:
        silence.cancel()
        following.cancel()
        watching.cancel()
        await asyncio.wait([silence, following, watching])
        await to_thread.run_sync(parts.rollout.stop)  # in a thread: the loop must hear a second signal
        if closing.webhook is not None:
            await to_thread.run_sync(closing.webhook.stop)
        await closing.auditing.stop()
        await to_thread.run_sync(parts.ledger.close)
        closing.texts.close()
        if closing.revisions is not None:
            closing.revisions.close()
        closing.feedback.close()
        counting.cancel()
        await asyncio.wait([counting])
        await closing.rate_limits.close()
        await to_thread.run_sync(closing.traces.close)


async def report_silence(ledger: Ledger) -> None:
    """Have the ledger log that its database does not answer; never returns."""
    while True:
        await asyncio.sleep(SILENCE_SECONDS)
        ledger.report_silence()
