"""How a client's script tells what worked: one JSON line for each feature."""

import json
import os
import traceback
from collections.abc import Callable

URL, KEY, MODEL = (os.environ[name] for name in ("EXAM_URL", "EXAM_KEY", "EXAM_MODEL"))
ENCODER = os.environ.get("EXAM_ENCODER", "")
FAILURE = 300  # characters of an error that are shown


def feature(name: str) -> Callable[[Callable[[], object]], None]:
    """Run the decorated function at once, and print whether it worked and what it returned or raised."""

    def run(function: Callable[[], object]) -> None:
        try:
            line = {"feature": name, "ok": True, "seen": repr(function())[:FAILURE]}
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[1:2]
            where = f"{place[0].name}:{place[0].lineno}: " if place else ""
            line = {"feature": name, "ok": False, "seen": f"{where}{type(error).__name__}: {error}"[:FAILURE]}
        print(json.dumps(line), flush=True)

    return run
