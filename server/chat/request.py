"""A request for one reply, whatever its wire format: its prompt, and its sampling within the skill's limits."""

import json
import re
import secrets
from collections.abc import Collection, Sequence

from anyio import to_thread
from msgspec import Struct
from msgspec.structs import replace

from server.engine.sequence import RequestedSampling, Sampling, check
from server.errors import InvalidRequest
from server.models.rollout import Model
from server.skills.skill import Skill
from server.skills.turns import conversation
from server.text.chat_template import Message, TemplateOptions, strings

LONG_TEXT = 4096  # characters; longer prompts are tokenised in a thread, so that other streams go on
MOST_NAMES = 32
TURN = 64  # characters added per message for what the chat template writes around it


class ReplyRequest(Struct, frozen=True):
    """One reply of `skill`; options left None are the skill's."""

    skill: Skill
    messages: tuple[Message, ...]
    """As chat templates read them, in any order of roles, without the skill's own turns."""
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
    template: TemplateOptions = TemplateOptions()
    """Tools and variables for the chat template, and whether the reply continues the last message."""
    ignored: tuple[str, ...] = ()
    """Names of fields that were not honoured."""


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
    size = TURN * len(messages) + sum(map(len, strings([*messages, *request.template.tools])))
    if size <= LONG_TEXT:
        return model.tokenizer.chat(messages, options=request.template)
    return await to_thread.run_sync(long_prompt, messages, request.template, model)


def long_prompt(messages: Sequence[Message], options: TemplateOptions, model: Model) -> list[int]:
    """Token ids of `messages`, counted first: counting is fast, exact tokenising takes a second per megabyte."""
    if len(messages) >= model.engine.context:  # each message has at least one token
        raise too_long(len(messages), model.engine.context)
    count = sum(model.tokenizer.count(message["content"]) for message in messages)
    if count >= model.engine.context:
        raise too_long(count, model.engine.context)
    return model.tokenizer.chat(messages, options=options)


def sampling_of(request: ReplyRequest, prompt: int, model: Model) -> Sampling:
    """The request's options over the skill's, for a prompt of `prompt` tokens; `max_tokens` is what there is room for.

    Raises InvalidRequest for an option above the skill's limit, or if the prompt leaves no room in the context.
    """
    skill, asked = request.skill, request.sampling
    if prompt >= model.engine.context:
        raise too_long(prompt, model.engine.context)
    check_limits(request)
    wanted = skill.usual_tokens if asked.max_tokens is None else asked.max_tokens
    merged = replace(asked.merged_over(skill), max_tokens=min(wanted, most_tokens(skill, prompt, model.engine.context)))
    sampling = Sampling.resolve(merged, model.tokenizer.stop_ids)
    check(prompt, sampling, model.engine.context)  # before any limit or budget is charged
    return sampling


def most_tokens(skill: Skill, prompt: int, context: int) -> int:
    """The most tokens of a reply of `skill` to a prompt of `prompt` tokens: at least 1."""
    most = min(context - prompt, skill.tokens_per_reply or context)
    return most if skill.tokens_per_minute is None else max(1, min(most, skill.tokens_per_minute - prompt))


def notes_of(request: ReplyRequest, sampling: Sampling) -> dict[str, str]:
    """Response headers that name what was asked for and not granted."""
    asked, notes = request.sampling.max_tokens, {}
    if request.ignored:
        notes["X-Secateur-Ignored"] = header_value(request.ignored)
    if asked is not None and sampling.max_tokens < asked:
        notes["X-Secateur-Max-Tokens"] = str(sampling.max_tokens)
    return notes


def header_value(names: Collection[str]) -> str:
    """Names of fields as a header's value, at most MOST_NAMES; a name that is no plain word is shown as `?`."""
    plain = [name if re.fullmatch(r"[A-Za-z0-9_.-]+", name) else "?" for name in names]
    return ", ".join(plain[:MOST_NAMES]) + (", ..." if len(plain) > MOST_NAMES else "")


def check_limits(request: ReplyRequest) -> None:
    """Raise InvalidRequest for an option that the skill does not allow."""
    skill, asked = request.skill, request.sampling
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
        f"This model's maximum context length is {context} tokens. However, your messages have at least {prompt} "
        "tokens, and a reply needs at least 1 more. Please shorten the messages.",
        param="messages",
        code="context_length_exceeded",
        reason="context",
    )
