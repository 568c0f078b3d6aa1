"""OpenVINO GenAI's continuous batching on a GGUF file or a converted model: `... MODEL THREADS`."""

import sys

import numpy
import openvino
import openvino_genai

from tests.benchmarks.peers.racers.racer import Ids, race


def main() -> None:
    """Race."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 1  # GB
    scheduler.max_num_batched_tokens = 512
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        sys.argv[1], scheduler, "CPU", {"INFERENCE_NUM_THREADS": int(sys.argv[2]), "ENABLE_CPU_PINNING": False}
    )

    def generate(prompts: list[Ids], tokens: int) -> None:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens, config.min_new_tokens = tokens, tokens
        config.ignore_eos, config.do_sample = True, False
        inputs = [openvino.Tensor(numpy.array([ids], dtype=numpy.int64)) for ids in prompts]
        results = pipeline.generate(inputs, [config] * len(inputs))
        assert all(len(result.m_generation_ids[0]) == tokens for result in results), "it stopped early"

    race(generate)


if __name__ == "__main__":
    main()
