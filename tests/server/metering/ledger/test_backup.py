"""The documented backups, taken while replies are settled, restored and proven by `secateur reconcile`."""

import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from server.commands.__main__ import main
from server.metering.ledger.connection import snapshot
from server.metering.ledger.ledger import Ledger
from server.metering.ledger.records import Opening, Settlement, Usage
from tests.conftest import ROOT
from tests.support.harness import until
from tests.support.postgres_server import binary

PAGE = (ROOT / "docs/operate/ledger.md").read_text()


def commands(first: str) -> list[str]:
    """The commands of the block of the page that begins with `first`, but for those of secateur itself."""
    [block] = [block for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) if block.startswith(first)]
    return [line for line in block.splitlines() if not line.startswith("secateur")]


@contextmanager
def busy(ledger: Ledger) -> Iterator[None]:
    """Settle replies all the time, and leave one under way."""
    stop, done = threading.Event(), [0]
    ledger.open(Opening("under-way", "help", "m", 10, 50)).result()
    ledger.count({"under-way": Usage(10, 0, 7)}).result()

    def replies() -> None:
        while not stop.is_set():
            name = f"r{done[0]}"
            day = ledger.open(Opening(name, f"s{done[0] % 3}", "m", 10, 50)).result().day
            ledger.settle(Settlement(name, Usage(10, 0, 5), "stop", f"s{done[0] % 3}", day)).result()
            done[0] += 1

    writer = threading.Thread(target=replies)
    writer.start()
    until(lambda: done[0] > 20)
    before = done[0]
    try:
        yield
        until(lambda: done[0] > before + 5)
    finally:
        stop.set()
        writer.join()


def proven(where: str) -> int:
    """The finished replies of a restored ledger, after its server has started and recovered what was under way."""
    assert main(["reconcile", where]) == 0
    ledger = Ledger(where, instance="a")
    assert ledger.recovered in (1, 2)  # the moment may lie between a reply's opening and its end
    ledger.close()
    assert main(["reconcile", where]) == 0
    with snapshot(where) as database:
        [(tokens,)] = database.execute("SELECT sum(prompt_tokens + output_tokens) FROM requests")
        [(whole,)] = database.execute("SELECT count(*) FROM requests WHERE outcome = 'stop'")
    assert tokens == 15 * whole + 17
    return int(whole)


def test_a_backup_of_sqlite_is_a_whole_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "usage.sqlite3", instance="a")
    [command] = commands("python3")
    with busy(ledger):
        subprocess.run(command.replace("python3", sys.executable, 1), shell=True, cwd=tmp_path, check=True)
    ledger.close()
    assert proven(str(tmp_path / "backup.sqlite3")) >= 20


@pytest.mark.skipif(shutil.which("pg_dump") is None, reason="PostgreSQL is not installed: tests/install")
def test_a_dump_of_postgresql_is_a_whole_ledger(shared: str, tmp_path: Path) -> None:
    ledger = Ledger(shared, instance="a")
    restored = re.sub(r"@/\w+\?", f"@/{tmp_path.name.replace('-', '_')}_restored?", shared)
    dump, create, restore = commands("pg_dump")
    create = create.replace(" restored", " " + restored.split("@/")[1].split("?")[0])
    folder = str(Path(binary("pg_dump") or "").parent)
    environment = {"LEDGER": shared, "RESTORED": restored, "PATH": f"{folder}:/usr/bin:/bin"}
    with busy(ledger):
        subprocess.run(dump, shell=True, cwd=tmp_path, env=environment, check=True)
    ledger.close()
    for command in (create, restore):
        subprocess.run(command, shell=True, cwd=tmp_path, env=environment, check=True)
    assert proven(restored) >= 20
