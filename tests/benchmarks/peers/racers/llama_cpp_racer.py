"""llama.cpp built on this machine, by `llama_cpp.cpp`: `... MODEL.gguf THREADS SLOTS CONTEXT PROGRAM`."""

import subprocess
import sys

from tests.benchmarks.peers.racers.racer import Ids, race


def main() -> None:
    """Race."""
    program = subprocess.Popen(
        [sys.argv[5], *sys.argv[1:5]], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert program.stdin
    assert program.stdout
    asked, answers = program.stdin, program.stdout
    answers.readline()

    def generate(prompts: list[Ids], tokens: int) -> float:
        ids = [str(id) for prompt in prompts for id in prompt]
        print("generate", len(prompts), tokens, len(prompts[0]), *ids, file=asked, flush=True)
        answer = answers.readline()
        assert answer, "llama.cpp stopped"
        return -float(answer.split()[1])  # the program's CPU seconds count, and are not those of a finished child

    race(generate)


if __name__ == "__main__":
    main()
