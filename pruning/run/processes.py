"""Starts the processes that train together, and joins those that another launcher started; the first one leads.

Ranks and addresses are the environment variables that torchrun and `accelerate launch` set, and accelerate reads them.
The leader is the process that the user has started: where it ends, however that is, the others find out and end too.
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
"""How long a process waits for another one, which may be pruning for hours; one that has ended is found out at once."""
GRACE = 10.0
"""Seconds in which the others may end by themselves."""


@contextmanager
def team_of(count: int, arguments: Sequence[str]) -> Iterator["Team"]:
    """This process among all that carry out `secateur` with `arguments`; `count` of them are started, if more than 1.

    Raises RecipeError where there are fewer GPUs, and TeamBroken, with what became of it, where one of them has ended.
    """
    with _followers(count, arguments) as followers:
        try:
            with _joined() as team:
                yield team
        except TeamBroken as error:
            ended = [(code, rank) for rank, process in followers.items() if (code := _code(process))]
            if not ended:
                raise
            code, rank = min(ended)  # one that was killed, rather than those which ended since they lacked it
            what = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
            raise TeamBroken(
                f"process {rank + 1} of {count} {what}: run the same command again, and it goes on where it was"
            ) from error


def launched() -> bool:
    """Whether a launcher, which may be this module, has started several processes, of which this is one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def _followers(count: int, arguments: Sequence[str]) -> Iterator[dict[int, "subprocess.Popen[bytes]"]]:
    """Start all processes but this one, the first; they are ended with the context."""
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
            _code(process)
    finally:
        for process in processes.values():
            process.kill()
            process.wait()
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _joined() -> Iterator["Team"]:
    """This process in its team."""
    import torch

    from pruning.stages.team import Team

    gpus = torch.cuda.device_count()
    if not launched():
        yield Team(device=torch.device("cuda" if gpus else "cpu"))
        return
    from accelerate import PartialState  # takes a second, for nothing where the process is alone

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
    """A port on which the processes can meet."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _code(process: "subprocess.Popen[bytes]") -> int | None:
    """The exit code of a process that is about to end; None where it is not."""
    try:
        return process.wait(GRACE)
    except subprocess.TimeoutExpired:
        return None
