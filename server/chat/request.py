"""What a caller asks for, and what of it the skill and the model allow."""

from collections.abc import Mapping, Sequence
from functools import partial

from anyio import to_thread
from msgspec import Struct

from server.engine.sequence import Sampling, check
from server.errors import InvalidRequest
from server.models.rollout import Model
from server.skills.catalogue import Skill
from server.skills.turns import conversation

# What a skill has a value for, where a caller asks for none.
DRAWN = ("temperature", "top_p", "top_k", "min_p", "frequency_penalty", "presence_penalty")
LONG_TEXT = 4096  # characters; longer texts are tokenised in a thread, so that other streams go on
TURN = 64  # characters that a message counts for beside its own: templates write some around each


class Asked(Struct, frozen=True):
    """What a caller asks for, whatever the wire format; None leaves it to the skill."""

    skill: Skill
    messages: tuple[Mapping[str, str], ...]
    """Role and content of each, the skill's system prompt not among them."""
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    logprobs: int | None = None
    """Whether tokens are to come with their scores, and with how many alternatives."""
    stop: tuple[str, ...] = ()
    key_id: str = ""
    """Which API key asks; empty for a page's visitor."""
    person: str = ""
    """Who a verified visitor is, for the system prompt."""
    idempotency: str | None = None


async def prompt_of(asked: Asked, model: Model) -> list[int]:
    """The ids of the conversation, as `model` reads them."""
    messages = conversation(asked.skill, asked.messages, asked.person)
    if sum(TURN + len(message["content"]) for message in messages) <= LONG_TEXT:
        return model.tokenizer.chat(messages)
    return await to_thread.run_sync(partial(long_prompt, messages, model))


def long_prompt(messages: Sequence[Mapping[str, str]], model: Model) -> list[int]:
    """Count first, which is fast: the exact tokenizer takes a second for a megabyte. No turn is without a token."""
    if len(messages) >= model.engine.context:
        raise too_long(len(messages), model.engine.context)
    count = sum(model.tokenizer.count(message["content"]) for message in messages)
    if count >= model.engine.context:
        raise too_long(count, model.engine.context)
    return model.tokenizer.chat(messages)


def sampling_of(asked: Asked, prompt: int, model: Model) -> Sampling:
    """The caller's wishes within the skill's and the engine's limits."""
    skill, room = asked.skill, model.engine.context - prompt
    if room < 1:
        raise too_long(prompt, model.engine.context)
    if asked.max_tokens is not None and asked.max_tokens > skill.ceiling:
        raise InvalidRequest(
            f"max_tokens is {asked.max_tokens}; the skill {skill.name!r} allows at most {skill.ceiling}.",
            param="max_tokens",
        )
    if asked.logprobs is not None and not (skill.logprobs and asked.key_id):
        raise InvalidRequest(f"The skill {skill.name!r} does not allow logprobs.", param="logprobs")
    if asked.temperature is not None and asked.temperature > skill.max_temperature:
        raise InvalidRequest(
            f"temperature is {asked.temperature}; the skill {skill.name!r} allows at most {skill.max_temperature}.",
            param="temperature",
        )
    drawn = {name: getattr(skill if getattr(asked, name) is None else asked, name) for name in DRAWN}
    sampling = Sampling(
        **drawn,
        logit_bias=asked.logit_bias,
        seed=asked.seed,
        logprobs=asked.logprobs,
        max_tokens=min(skill.max_tokens, skill.ceiling, room) if asked.max_tokens is None else asked.max_tokens,
        stop_ids=model.tokenizer.stop_ids,
    )
    check(prompt, sampling, model.engine.context)  # before any limit or budget is charged
    return sampling


def too_long(prompt: int, context: int) -> InvalidRequest:
    """The messages leave no room for a reply; `prompt` may be less than what they really have."""
    return InvalidRequest(
        f"The messages have at least {prompt} tokens and the context is {context}; a reply needs at least 1 more.",
        param="messages",
        code="context_length_exceeded",
        reason="context",
    )
