"""Replicas and routers as processes: started, killed (SIGKILL) and started again on the same ports."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT
from tests.exams.hostile.nginx import SETTINGS, free_port
from tests.support.harness import ORIGIN

ROUTER = "vllm-router==0.1.17"
START_SECONDS = 240
SKILL = f"""name = "help"
system = "You tell long stories."
max_tokens = 300
temperature = 1.0
origins = ["{ORIGIN}"]
"""
BALANCED = """upstream secateur {{
    hash $http_x_session_id consistent;
    {backends}
  }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://secateur;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_connect_timeout 2s;
      proxy_read_timeout 330s;
      proxy_next_upstream error;
    }}
  }}"""


class Process:
    """A command that answers at a URL once it is up; its output goes to a log."""

    def __init__(self, name: str, command: Sequence[str], url: str, log: Path) -> None:
        self.name = name
        self.url = url
        self._command = list(command)
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, without waiting."""
        with self._log.open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    def wait(self, path: str) -> None:
        """Wait until it answers 200; raises RuntimeError."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            try:
                with urllib.request.urlopen(f"{self.url}{path}", timeout=5):
                    return
            except OSError:
                time.sleep(0.2)
        raise RuntimeError(f"{self.name} does not answer; {self._log} says why")

    def kill(self) -> None:
        """Kill it with all its children."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None


def replica(folder: Path, number: int, model: Path, ledger: str) -> Process:
    """A server with its own folder, which shares the ledger and the conversations of the others."""
    own = folder / f"replica-{number}"
    (own / "skills").mkdir(parents=True)
    (own / "skills" / "help.toml").write_text(SKILL)
    port = free_port()
    (own / "server.toml").write_text(
        f'model = "{model}"\nskills = "{own}/skills"\nledger = "{ledger}"\ninstance = "replica-{number}"\n'
        f'feedback = "{own}/feedback.sqlite3"\nport = {port}\nadmin_port = {free_port()}\nslots = 8\n'
        f'conversation_storage = "database"\ncontext = 2048\nthreads = 1\nprefix_cache = "{own}/prefixes"\n'
    )
    command = [sys.executable, "-m", "server.commands", "serve", str(own / "server.toml")]
    return Process(f"replica {number}", command, f"http://127.0.0.1:{port}", own / "log")


def vllm_router(folder: Path, backends: Sequence[str], environment: Path) -> Process:
    """vllm-router from PyPI with consistent hashing of x-session-id, in `environment`, made if it is missing."""
    program, port = environment / "bin/vllm-router", free_port()
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        subprocess.run([str(environment / "bin/python"), "-m", "pip", "install", "--quiet", ROUTER], check=True)
    command = [str(program.absolute()), "--host", "127.0.0.1", "--port", str(port), "--policy", "consistent_hash"]
    command += ["--worker-urls", *backends, "--disable-retries", "--health-check-interval-secs", "2"]
    command += ["--prometheus-port", str(free_port()), "--worker-startup-timeout-secs", "120"]
    return Process("vllm-router", command, f"http://127.0.0.1:{port}", folder / "router.log")


def nginx(folder: Path, backends: Sequence[str]) -> Process:
    """nginx with consistent hashing of x-session-id."""
    own, port = folder / "nginx", free_port()
    own.mkdir()
    listed = "\n    ".join(f"server {url.removeprefix('http://')} max_fails=1 fail_timeout=2s;" for url in backends)
    (own / "nginx.conf").write_text(SETTINGS.format(folder=own, servers=BALANCED.format(backends=listed, port=port)))
    command = ["nginx", "-p", str(own), "-c", str(own / "nginx.conf"), "-e", str(own / "nginx.log")]
    return Process("nginx", command, f"http://127.0.0.1:{port}", own / "log")
