import threading

import anyio
import pytest

from server.chat.worker import Worker
from server.errors import Overloaded


def test_few_calls_run_at_once_few_wait_and_the_next_is_refused() -> None:
    held, running, most = threading.Event(), threading.Semaphore(0), []

    def work(number: int) -> None:
        running.release()
        most.append(number)
        assert held.wait(120)

    async def main() -> None:
        worker = Worker("tests", threads=2, waiting=1)
        async with anyio.create_task_group() as group:
            for number in range(3):
                group.start_soon(worker.run, work, number)
            for _ in range(2):
                await anyio.to_thread.run_sync(running.acquire)
            with pytest.raises(Overloaded, match="for tests wait"):
                await worker.run(work, 3)
            assert len(most) == 2
            held.set()
        assert await worker.run(len, "free again") == 10

    anyio.run(main)
