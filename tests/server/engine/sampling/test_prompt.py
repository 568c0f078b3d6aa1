"""Log probabilities of prompts by the engine, against the runner's own logits of the whole prompt."""

import asyncio

import pytest
import torch

pytest.importorskip("server.engine.native._core")

from server.engine.batch import Batch, Chunk
from server.engine.engine import Engine
from server.engine.scheduling.speculation import PromptLookup
from server.engine.sequence import Sampling, Sequence
from tests.server.engine.native.tiny import Packed, tiny
from tests.server.engine.runners.test_native_runner import runner_of

PROMPT = [(7 * index * index + 3 * index) % 31 for index in range(110)]


@pytest.mark.parametrize("batch_tokens", [8, 50, 128])
def test_they_are_those_of_the_whole_prompt_however_it_is_chunked_or_cached(batch_tokens: int) -> None:
    packed = Packed(tiny("llama"))
    sequence = Sequence("", tuple(PROMPT), Sampling())
    logits = runner_of(packed).last(Batch((Chunk(sequence, 0, 0, sequence.prompt, True),)), [len(PROMPT)])
    expected = logits.double().log_softmax(-1)

    async def main() -> None:
        runner = runner_of(packed)
        engine = Engine(runner, slots=4, context=128, batch_tokens=batch_tokens, look_up=PromptLookup())
        engine.start()
        plain = [engine.submit(PROMPT, Sampling(max_tokens=2), skill="a") for _ in range(2)]
        wanted = Sampling(temperature=0, prompt_logprobs=3, logprobs=1, max_tokens=2)
        scored = [engine.submit(PROMPT, wanted, skill="a") for _ in range(2)]
        for stream in (*plain, *scored):
            tokens = [token async for token in stream]
            assert len(tokens) == 2
        assert not any(stream.prompt_logprobs for stream in plain)
        assert plain[1].cached == 96
        engine.stop()
        for stream in scored:
            assert stream.cached == 0
            assert len(stream.prompt_logprobs) == len(PROMPT) - 1
            for place, (found, rank) in enumerate(stream.prompt_logprobs):
                own = PROMPT[place + 1]
                assert found.sampled == pytest.approx(float(expected[place, own]), abs=1e-6)
                order = torch.sort(logits[place], descending=True, stable=True).indices
                assert [id for id, _ in found.top] == order[:3].tolist()
                assert logits[place, order[rank - 1]] == logits[place, own]

    asyncio.run(main())


def test_a_prompt_can_be_scored_without_a_reply() -> None:
    async def main() -> None:
        engine = Engine(runner_of(Packed(tiny("llama"))), slots=2, context=128, batch_tokens=64)
        engine.start()
        wanted = Sampling(prompt_logprobs=0, max_tokens=0)
        streams = [engine.submit(PROMPT[:count], wanted, skill="a") for count in (1, 2, 110)]
        assert [[token async for token in stream] for stream in streams] == [[], [], []]
        assert [len(stream.prompt_logprobs) for stream in streams] == [0, 1, 109]
        assert [(stream.sampled, stream.prompt_computed) for stream in streams] == [(0, True)] * 3
        assert engine.running == 0
        engine.stop()

    asyncio.run(main())
