"""Starts the processes of a team, or joins a team that torchrun or `accelerate launch` started.

Ranks and addresses are passed in the environment variables of torchrun, which accelerate reads. The process that the
user started is the leader; when it ends, for whatever reason, the others notice and end too.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from pruning.errors import RecipeError, TeamBroken

if TYPE_CHECKING:
    from pruning.stages.team import Team

PATIENCE = timedelta(days=30)
"""Timeout of a collective operation: the leader may prune for hours, and a dead process is noticed at once anyway."""
GRACE = 10.0
"""Seconds that a process gets to end by itself."""


@contextmanager
def launched_team(count: int, arguments: Sequence[str]) -> Iterator["Team"]:
    """This process in its team; starts `count` - 1 others, which run `secateur` with the same `arguments`.

    Raises RecipeError if there are fewer GPUs than processes, and TeamBroken with the cause if one of them ends.
    """
    with _followers(count, arguments) as followers:
        try:
            with _joined() as team:
                yield team
        except TeamBroken as error:
            ended = [(code, rank) for rank, process in followers.items() if (code := _exit_code(process))]
            if not ended:
                raise
            code, rank = min(ended)  # a signal is negative: the process that was killed, not one that missed it
            what = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise TeamBroken(f"process {rank + 1} of {count} {what}: run the same command again to resume") from error


def is_launched() -> bool:
    """Whether this process is one of several that a launcher, or this module, started."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def _followers(count: int, arguments: Sequence[str]) -> Iterator[dict[int, "subprocess.Popen[bytes]"]]:
    """Start the processes of rank 1 and above, by rank; they end with the context."""
    if count == 1:
        yield {}
        return
    before = dict(os.environ)
    common = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    threads = max((os.cpu_count() or 1) // count, 1)
    os.environ.update({name: str(value) for name, value in common.items()}, RANK="0", LOCAL_RANK="0")
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))  # else each process takes all cores
    command = [sys.executable, "-m", "pruning.commands", *arguments]
    processes = {
        rank: subprocess.Popen(
            command, env=os.environ | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.DEVNULL
        )
        for rank in range(1, count)
    }
    try:
        yield processes
        for process in processes.values():
            _exit_code(process)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _joined() -> Iterator["Team"]:
    """This process in its team, with the collective operations set up."""
    import torch

    from pruning.stages.team import Team

    gpus = torch.cuda.device_count()
    if not is_launched():
        yield Team(device=torch.device("cuda" if gpus else "cpu"))
        return
    from accelerate import PartialState  # late: takes a second, which a single process need not spend

    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if gpus and local > gpus:
        raise RecipeError(f"{local} processes need as many GPUs, but there are {gpus}: start {gpus}")
    backend = {"backend": "cpu:gloo,cuda:nccl"} if gpus else {}
    try:
        state = PartialState(cpu=not gpus, timeout=PATIENCE, **backend)
    except RuntimeError as error:
        raise TeamBroken(f"the processes did not find each other ({error}): run the same command again") from error
    try:
        yield Team(state.process_index, state.num_processes, state.device)
    finally:
        state.destroy_process_group()
        PartialState._reset_state()


def _free_port() -> int:
    """A free local port for the team's rendezvous."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _exit_code(process: "subprocess.Popen[bytes]") -> int | None:
    """The exit code of a process that ends within `GRACE` seconds, else None."""
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return None
