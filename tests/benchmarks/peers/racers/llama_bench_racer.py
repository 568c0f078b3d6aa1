"""llama.cpp's llama-bench, for prompts only: `... MODEL.gguf THREADS SLOTS CONTEXT PROGRAM`.

Each prompt loads the model anew; the CPU seconds of a prompt of one token are left out.
"""

import subprocess
import sys

from tests.benchmarks.peers.racers.racer import Ids, cpu_seconds, race


def main() -> None:
    """Race."""
    model, threads, program = sys.argv[1], sys.argv[2], sys.argv[5]

    def compute(prompt: int) -> float:
        """CPU seconds of the program for one prompt."""
        begin = cpu_seconds()
        options = ["-r", "1", "-n", "0", "--no-warmup", "-p", str(prompt), "-t", threads, "-ub", "512", "-fa", "1"]
        subprocess.run([program, "-m", model, *options], check=True, stdout=subprocess.DEVNULL)
        return cpu_seconds() - begin

    def generate(prompts: list[Ids], tokens: int) -> float:
        assert len(prompts) == tokens == 1, "it computes one prompt at a time"
        compute(len(prompts[0]))
        return loading

    loading = min(compute(1) for _ in range(3))
    race(generate)


if __name__ == "__main__":
    main()
