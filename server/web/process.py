"""Metrics of the server's process: memory, CPU, files, garbage collection, version, and the lag of its event loop."""

import asyncio
import os
import platform
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Gauge, GCCollector, Histogram, ProcessCollector

LAG_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
PROBE_SECONDS = 0.5


class ProcessMetrics:
    """Registers the metrics of this process; `watch` measures the event loop in which it runs."""

    def __init__(self, registry: CollectorRegistry) -> None:
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        build = Gauge(
            "secateur_build_info", "1, labelled by what runs.", ("version", "python", "machine"), registry=registry
        )
        build.labels(version("secateur"), platform.python_version(), os.uname().machine).set(1)
        self._lag = Histogram(
            "secateur_event_loop_lag_seconds",
            "How late the event loop runs a timer: each request and token waits as long.",
            registry=registry,
            buckets=LAG_SECONDS,
        )

    async def watch(self) -> None:
        """Measure the lag every PROBE_SECONDS until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            due = loop.time() + PROBE_SECONDS
            await asyncio.sleep(PROBE_SECONDS)
            self._lag.observe(max(0.0, loop.time() - due))
