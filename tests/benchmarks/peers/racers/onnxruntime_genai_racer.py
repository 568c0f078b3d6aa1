"""onnxruntime-genai on the output of its own model builder: `... MODEL_DIRECTORY THREADS`."""

import json
import sys
from pathlib import Path

import numpy
import onnxruntime_genai

from tests.benchmarks.peers.racers.racer import Ids, race


def main() -> None:
    """Race."""
    folder, threads = Path(sys.argv[1]), int(sys.argv[2])
    settings = folder / "genai_config.json"
    values = json.loads(settings.read_text())
    values["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = threads
    settings.write_text(json.dumps(values, indent=1))
    model = onnxruntime_genai.Model(str(folder))

    def generate(prompts: list[Ids], tokens: int) -> None:
        params = onnxruntime_genai.GeneratorParams(model)
        length = len(prompts[0]) + tokens
        params.set_search_options(
            max_length=length, min_length=length, batch_size=len(prompts), do_sample=False, early_stopping=False
        )
        generator = onnxruntime_genai.Generator(model, params)
        generator.append_tokens(numpy.array(prompts, dtype=numpy.int32))
        for _ in range(tokens):
            generator.generate_next_token()
        assert len(generator.get_sequence(0)) == length, "it stopped early"

    race(generate)


if __name__ == "__main__":
    main()
