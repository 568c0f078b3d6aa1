"""A request for one reply, whatever its wire format: its prompt, and its sampling within the skill's limits."""

import json
import secrets
from collections.abc import Mapping, Sequence
from functools import partial

from anyio import to_thread
from msgspec import Struct
from msgspec.structs import replace

from server.engine.sequence import RequestedSampling, Sampling, check
from server.errors import InvalidRequest
from server.models.rollout import Model
from server.skills.skill import Skill
from server.skills.turns import conversation

LONG_TEXT = 4096  # characters; longer prompts are tokenised in a thread, so that other streams go on
TURN = 64  # characters added per message for what the chat template writes around it


class ReplyRequest(Struct, frozen=True):
    """One reply of `skill`; options left None are the skill's."""

    skill: Skill
    messages: tuple[Mapping[str, str], ...]
    """Role and content of each, without the skill's own turns."""
    sampling: RequestedSampling = RequestedSampling()
    stop: tuple[str, ...] = ()
    """Stop strings."""
    key_id: str = ""
    """The API key's id in the ledger; empty for visitors of a page."""
    conversation: str = ""
    """The id of a visitor's conversation; empty for API callers."""
    cache_labels: tuple[str, ...] = ()
    """The caller's own divisions of its prefix cache, such as its users."""
    person: str = ""
    """The verified visitor's identity, for the system prompt; empty if unknown."""
    idempotency: str | None = None
    """Digest of the Idempotency-Key."""


def cache_salt(request: ReplyRequest) -> str:
    """The salt of a request's own prefix cache blocks: one for each API key and labels, or visitor's conversation.

    A request with neither gets a random salt, so it shares only the skill's prefix.
    """
    if not request.key_id and not request.conversation:
        return secrets.token_hex()
    return json.dumps([request.key_id, request.conversation, *request.cache_labels])


async def prompt_of(request: ReplyRequest, model: Model) -> list[int]:
    """The token ids of the conversation in `model`'s chat template; raises InvalidRequest if it is too long."""
    messages = conversation(request.skill, request.messages, request.person)
    if sum(TURN + len(message["content"]) for message in messages) <= LONG_TEXT:
        return model.tokenizer.chat(messages)
    return await to_thread.run_sync(partial(long_prompt, messages, model))


def long_prompt(messages: Sequence[Mapping[str, str]], model: Model) -> list[int]:
    """Token ids of `messages`, counted first: counting is fast, exact tokenising takes a second per megabyte."""
    if len(messages) >= model.engine.context:  # each message has at least one token
        raise too_long(len(messages), model.engine.context)
    count = sum(model.tokenizer.count(message["content"]) for message in messages)
    if count >= model.engine.context:
        raise too_long(count, model.engine.context)
    return model.tokenizer.chat(messages)


def sampling_of(request: ReplyRequest, prompt: int, model: Model) -> Sampling:
    """The request's options over the skill's, for a prompt of `prompt` tokens.

    Raises InvalidRequest for an option above the skill's limit, or if prompt and reply exceed the context.
    """
    skill, asked, room = request.skill, request.sampling, model.engine.context - prompt
    if room < 1:
        raise too_long(prompt, model.engine.context)
    check_limits(request)
    longest = min(skill.max_tokens, skill.ceiling, room) if asked.max_tokens is None else asked.max_tokens
    merged = replace(asked.merged_over(skill), max_tokens=longest)
    sampling = Sampling.resolve(merged, model.tokenizer.stop_ids)
    check(prompt, sampling, model.engine.context)  # before any limit or budget is charged
    return sampling


def check_limits(request: ReplyRequest) -> None:
    """Raise InvalidRequest for an option that the skill does not allow."""
    skill, asked = request.skill, request.sampling
    if asked.max_tokens is not None and asked.max_tokens > skill.ceiling:
        raise InvalidRequest(
            f"max_tokens is {asked.max_tokens}; the skill {skill.name!r} allows at most {skill.ceiling}.",
            param="max_tokens",
        )
    if asked.logprobs is not None and not (skill.logprobs and request.key_id):
        raise InvalidRequest(f"The skill {skill.name!r} does not allow logprobs.", param="logprobs")
    if asked.temperature is not None and asked.temperature > skill.max_temperature:
        raise InvalidRequest(
            f"temperature is {asked.temperature}; the skill {skill.name!r} allows at most {skill.max_temperature}.",
            param="temperature",
        )


def too_long(prompt: int, context: int) -> InvalidRequest:
    """The error for messages of at least `prompt` tokens, which leave no room for a reply."""
    return InvalidRequest(
        f"The messages have at least {prompt} tokens and the context is {context}; a reply needs at least 1 more.",
        param="messages",
        code="context_length_exceeded",
        reason="context",
    )
