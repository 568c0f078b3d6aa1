"""llama.cpp in the wheel xllamacpp, through its own server's batching: `... MODEL.gguf THREADS SLOTS CONTEXT`."""

import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import xllamacpp

from tests.benchmarks.peers.racers.racer import Ids, race


def main() -> None:
    """Race."""
    threads, slots, context = (int(argument) for argument in sys.argv[2:5])
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.n_parallel, params.n_ctx = slots, slots * context
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.warmup = False
    server = xllamacpp.Server(params)

    def one(ids: Ids, tokens: int) -> None:
        asked: dict[str, Any] = {"prompt": ids, "n_predict": tokens, "ignore_eos": True, "temperature": 0}
        result = server.handle_completions(asked | {"cache_prompt": False})
        made = result["usage"]["completion_tokens"] if "usage" in result else result["tokens_predicted"]
        assert made == tokens, f"it made {made} of {tokens} tokens"

    def generate(prompts: list[Ids], tokens: int) -> None:
        with ThreadPoolExecutor(len(prompts)) as pool:
            list(pool.map(lambda ids: one(ids, tokens), prompts))

    race(generate)


if __name__ == "__main__":
    main()
