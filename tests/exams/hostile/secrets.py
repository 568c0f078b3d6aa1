"""Plants secrets in every field a caller controls, and looks for them in logs, files, metrics and answers."""

from pathlib import Path

from msgspec import Struct

from tests.exams.client import serving
from tests.server.web.test_listeners import call
from tests.server.web.test_logs import SECRET, plant
from tests.support.harness import KEY


class Found(Struct):
    """How many log lines, metrics, files and answers hold a planted secret or a key."""

    log_lines: int
    metrics: int
    files: int
    answers: int
    looked_at: tuple[int, int, int, int]
    """Number of log lines, bytes of metrics, files of ledger and ratings, answers."""

    @property
    def good(self) -> bool:
        """Whether sources were searched and none held a secret."""
        return not (self.log_lines + self.metrics + self.files + self.answers) and min(self.looked_at) > 0


def exam(folder: Path) -> Found:
    """Plant secrets in a server that logs in JSON at level info, and search."""
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
