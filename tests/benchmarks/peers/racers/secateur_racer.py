"""This product's engine, without HTTP: `... ARTIFACT THREADS SLOTS CONTEXT`."""

import asyncio
import sys
from pathlib import Path

from server.artifact.checkpoint.reader import Artifact
from server.config import Config
from server.engine.sequence import Sampling
from server.models.loading import load_engine
from tests.benchmarks.peers.racers.racer import Ids, race


def main() -> None:
    """Race."""
    import torch

    threads, slots, context = (int(argument) for argument in sys.argv[2:5])
    unused = Path("unused")
    torch.set_num_threads(threads)
    config = Config(
        model=sys.argv[1],
        skills=unused,
        ledger=str(unused),
        slots=slots,
        context=context,
        look_up="off",
        threads=threads,  # there is no HTTP here for which a core should be left
    )
    engine, choices = load_engine(config, Artifact.open(Path(sys.argv[1])))
    for choice in choices:
        print(f"{choice.subject}: {choice.value}: {choice.reason}", file=sys.stderr)
    engine.start()

    async def one(ids: Ids, tokens: int) -> None:
        made = [token async for token in engine.submit(ids, Sampling(temperature=0, max_tokens=tokens), skill="race")]
        assert len(made) == tokens, "it stopped early"

    async def all_of_them(prompts: list[Ids], tokens: int) -> None:
        await asyncio.gather(*(one(ids, tokens) for ids in prompts))

    race(lambda prompts, tokens: asyncio.run(all_of_them(prompts, tokens)))
    engine.stop()


if __name__ == "__main__":
    main()
