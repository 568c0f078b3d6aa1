"""The server's engine without HTTP and without metering: `... server.toml SKILL.toml`.

A request is one line, {"questions": [...], "tokens": of each reply}; the answer is {"seconds": to the last token}.
Prompts and sampling are made as the server makes them, before the clock starts.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

from server.chat.request import ReplyRequest, prompt_of, sampling_of
from server.chat.shared_prefix import SharedPrefixes
from server.commands.serve import SWITCH_SECONDS
from server.config import load
from server.engine.sequence import RequestedSampling
from server.models.loading import load_engine, open_model
from server.models.rollout import Model
from server.skills.skill import Skill
from tests.benchmarks.serving.loads.load import ENDS


def main() -> None:
    """Answer requests until standard input ends."""
    sys.setswitchinterval(SWITCH_SECONDS)
    config, skill = load(Path(sys.argv[1])), Skill.read(Path(sys.argv[2]))
    artifact, tokenizer = open_model(Path(config.model))
    engine, choices = load_engine(config, artifact)
    answers = os.fdopen(os.dup(1), "w")
    for choice in choices:
        print(f"{choice.subject}: {choice.value}: {choice.reason}", file=sys.stderr)
    model = Model("alone", engine, tokenizer, artifact.lineage, choices)
    engine.start()
    answers.write(json.dumps({"ready": True}) + "\n")
    answers.flush()
    for line in sys.stdin:
        asked = json.loads(line)
        seconds = asyncio.run(replies(model, skill, asked["questions"], asked["tokens"]))
        answers.write(json.dumps({"seconds": seconds}) + "\n")
        answers.flush()
    engine.stop()


async def replies(model: Model, skill: Skill, questions: list[str], tokens: int) -> float:
    """Seconds until all questions, asked at once, are answered."""
    prefixes = SharedPrefixes()
    bias = tuple((int(id), float(value)) for id, value in ENDS.items())
    prompts = []
    for question in questions:
        said = ({"role": "user", "content": question},)
        asked = ReplyRequest(skill, said, RequestedSampling(max_tokens=tokens, temperature=0, logit_bias=bias))
        ids = await prompt_of(asked, model)
        shared = await prefixes.length(ids, skill, model)
        prompts.append((ids, sampling_of(asked, len(ids), model), shared))

    async def one(number: int) -> int:
        ids, sampling, shared = prompts[number]
        stream = model.engine.submit(ids, sampling, skill=skill.name, shared_prefix=shared)
        return len([token async for token in stream])

    begin = time.monotonic()
    made = await asyncio.gather(*(one(number) for number in range(len(prompts))))
    seconds = time.monotonic() - begin
    assert made == [tokens] * len(prompts), f"it stopped early: {made}"
    return seconds


if __name__ == "__main__":
    main()
