"""`make exam-clients`: the clients that people use, on one real server with a real model.

Prints a line for each client's feature, then whether the ledger has the tokens that each response claimed.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from sqlite3 import connect

from tests.exams.clients.recorder import Claim, recording
from tests.exams.clients.serving import KEY, MODEL, Served, served
from tests.exams.row import Row, show

HERE = Path(__file__).parent
ENVIRONMENTS = Path("build/clients")
CLIENT_SECONDS = 900
OWN = ("openai_python", "anthropic_python")
"""Run by the environment of the tests, which has the newest of these clients."""


def clients() -> dict[str, list[str]]:
    """The command that runs each client's script, by its name."""
    python = ENVIRONMENTS / "python/bin/python"
    scripts = sorted(path for path in (HERE / "python").glob("*.py") if path.stem != "report")
    commands = {path.stem: [sys.executable if path.stem in OWN else str(python), str(path)] for path in scripts}
    # Node looks for packages beside a script, so the scripts are copied beside theirs.
    scripts = sorted(path for path in (HERE / "node").glob("*.mjs") if path.stem != "report")
    return commands | {path.stem: ["node", str(ENVIRONMENTS / "node" / path.name)] for path in scripts}


def install() -> None:
    """Make the environments of the clients, where they are missing or their lists have changed."""
    python, node = ENVIRONMENTS / "python", ENVIRONMENTS / "node"
    wanted = (HERE / "python/requirements.txt").read_text() + (HERE / "node/package.json").read_text()
    stamp = ENVIRONMENTS / "installed"
    node.mkdir(parents=True, exist_ok=True)
    for file in (HERE / "node").iterdir():
        (node / file.name).write_bytes(file.read_bytes())
    if stamp.exists() and stamp.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", str(python)], check=True)
    packages = ["--requirement", str(HERE / "python/requirements.txt")]
    subprocess.run([str(python / "bin/python"), "-m", "pip", "install", "--quiet", *packages], check=True)
    subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=node, check=True)
    stamp.write_text(wanted)


def features(name: str, command: Sequence[str], served: Served) -> Iterator[Row]:
    """A row for each feature that a client's script reports."""
    environment = {**os.environ, "EXAM_URL": f"{served.url}/v1", "EXAM_KEY": KEY, "EXAM_MODEL": MODEL}
    environment |= {"EXAM_ENCODER": served.encoder, "PYTHONWARNINGS": "ignore", "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=CLIENT_SECONDS, check=False
    )
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"feature"')]
    for line in lines:
        yield Row(f"{name}: {line['feature']}", line["seen"], "works", line["ok"])
    if ended.returncode or not lines:
        yield Row(f"{name}: its script", ended.stderr.strip()[-300:], "runs to its end", False)


def ledger_rows(ledger: Path, claims: Sequence[Claim]) -> Iterator[Row]:
    """Compare every response's usage with the ledger's rows of its request."""
    with closing(connect(ledger)) as database:
        query = "SELECT request_id, prompt_tokens, output_tokens, state FROM requests"
        rows = database.execute(query).fetchall()
    counted: dict[str, list[int]] = {}
    for request_id, prompt, output, _ in rows:
        sums = counted.setdefault(request_id.partition("/")[0], [0, 0])
        sums[0], sums[1] = sums[0] + prompt, sums[1] + output
    claimed = {claim.request_id: claim for claim in claims if claim.usage and any(claim.usage)}
    different = [c for c in claimed.values() if tuple(counted.get(c.request_id, ())) != c.usage]
    seen = f"{len(different)} of {len(claimed)}" + "".join(f"; {c.path} {c.usage}" for c in different[:3])
    yield Row("ledger: responses whose usage differs", seen, "0", not different)
    unsettled = sum(state != "final" for *_, state in rows)
    yield Row("ledger: rows that are not settled", f"{unsettled} of {len(rows)}", "0", not unsettled)
    failed = [claim for claim in claims if claim.status >= 500]
    seen = f"{len(failed)} of {len(claims)}" + "".join(f"; {claim.path}" for claim in failed[:3])
    yield Row("responses with a status of 500 or more", seen, "0", not failed)


def main(arguments: Sequence[str]) -> int:
    """Run the named clients, or all; returns 1 if a feature failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.exams.clients", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of the clients' names")
    parser.add_argument(
        "--model", type=Path, default=Path("build/smollm2-vocabulary"), help="the artifact that answers"
    )
    options = parser.parse_args(arguments)
    install()
    code = 0
    with tempfile.TemporaryDirectory(prefix="secateur-exam-") as folder, served(options.model, Path(folder)) as server:
        with recording(server.port) as recorder:
            behind = server._replace(port=recorder.server_port)
            for name, command in clients().items():
                if not options.names or any(part in name for part in options.names):
                    code |= show(features(name, command, behind))
        code |= show(ledger_rows(server.ledger, recorder.claims))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
