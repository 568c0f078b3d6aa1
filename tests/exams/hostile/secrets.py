"""Secrets planted wherever a caller can plant them, and where they may be found: nowhere."""

from pathlib import Path

from msgspec import Struct

from tests.exams.client import serving
from tests.server.web.test_listeners import call
from tests.server.web.test_logs import SECRET, plant
from tests.support.harness import KEY


class Found(Struct):
    """In how many of what was looked at a planted secret or a key stood."""

    log_lines: int
    metrics: int
    files: int
    answers: int
    looked_at: tuple[int, int, int, int]
    """Lines of the log, bytes of metrics, files of the ledger and of ratings, answers."""

    @property
    def good(self) -> bool:
        """Nowhere, and there was something to look at."""
        return not (self.log_lines + self.metrics + self.files + self.answers) and min(self.looked_at) > 0


def exam(folder: Path) -> Found:
    """With every line that the server can log."""
    with serving(folder, log="json", log_level="info") as server:
        server.ready()
        answers = plant(server)
        metrics = call(server.admin, "/metrics").content
    kept = [path.read_bytes() for path in folder.glob("*.sqlite3*")]
    lines = [line.encode() for line in server.output]
    looked_at = (len(lines), len(metrics), len(kept), len(answers))
    told = [sum(map(_told, texts)) for texts in (lines, [metrics], kept, answers)]
    return Found(told[0], told[1], told[2], told[3], looked_at)


def _told(text: bytes) -> bool:
    return SECRET.encode() in text or KEY.encode() in text
