"""A request for one reply, whatever its wire format: its prompt, and its sampling within the skill's limits."""
"""A request for one reply, whatever its wire format: its prompt, and its sampling within the skill's limits."""


from collections.abc import Mapping, Sequence
from collections.abc import Mapping, Sequence
from functools import partial
from functools import partial


from anyio import to_thread
from anyio import to_thread
from msgspec import Struct
from msgspec import Struct
from msgspec.structs import replace
from msgspec.structs import replace


from server.engine.sequence import RequestedSampling, Sampling, check
from server.engine.sequence import RequestedSampling, Sampling, check
from server.errors import InvalidRequest
from server.errors import InvalidRequest
from server.models.rollout import Model
from server.models.rollout import Model
from server.skills.skill import Skill
from server.skills.skill import Skill
from server.skills.turns import conversation
from server.skills.turns import conversation


LONG_TEXT = 4096  # characters; longer prompts are tokenised in a thread, so that other streams go on
LONG_TEXT = 4096  # characters; longer prompts are tokenised in a thread, so that other streams go on
TURN = 64  # characters added per message for what the chat template writes around it
TURN = 64  # characters added per message for what the chat template writes around it




class ReplyRequest(Struct, frozen=True):
class ReplyRequest(Struct, frozen=True):
    """One reply of `skill`; options left None are the skill's."""
    """One reply of `skill`; options left None are the skill's."""


    skill: Skill
    skill: Skill
    messages: tuple[Mapping[str, str], ...]
    messages: tuple[Mapping[str, str], ...]
    """Role and content of each, without the skill's own turns."""
    """Role and content of each, without the skill's own turns."""
    sampling: RequestedSampling = RequestedSampling()
    sampling: RequestedSampling = RequestedSampling()
    stop: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()
    """Stop strings."""
    """Stop strings."""
    key_id: str = ""
    key_id: str = ""
    """The API key's id in the ledger; empty for visitors of a page."""
    """The API key's id in the ledger; empty for visitors of a page."""
    person: str = ""
    person: str = ""
    """The verified visitor's identity, for the system prompt; empty if unknown."""
    """The verified visitor's identity, for the system prompt; empty if unknown."""
    idempotency: str | None = None
    idempotency: str | None = None
    """Digest of the Idempotency-Key."""
    """Digest of the Idempotency-Key."""




async def prompt_of(request: ReplyRequest, model: Model) -> list[int]:
async def prompt_of(request: ReplyRequest, model: Model) -> list[int]:
    """The token ids of the conversation in `model`'s chat template; raises InvalidRequest if it is too long."""
    """The token ids of the conversation in `model`'s chat template; raises InvalidRequest if it is too long."""
    messages = conversation(request.skill, request.messages, request.person)
    messages = conversation(request.skill, request.messages, request.person)
    if sum(TURN + len(message["content"]) for message in messages) <= LONG_TEXT:
    if sum(TURN + len(message["content"]) for message in messages) <= LONG_TEXT:
        return model.tokenizer.chat(messages)
        return model.tokenizer.chat(messages)
    return await to_thread.run_sync(partial(long_prompt, messages, model))
    return await to_thread.run_sync(partial(long_prompt, messages, model))




def long_prompt(messages: Sequence[Mapping[str, str]], model: Model) -> list[int]:
def long_prompt(messages: Sequence[Mapping[str, str]], model: Model) -> list[int]:
    """Token ids of `messages`, counted first: counting is fast, exact tokenising takes a second per megabyte."""
    """Token ids of `messages`, counted first: counting is fast, exact tokenising takes a second per megabyte."""
    if len(messages) >= model.engine.context:  # each message has at least one token
    if len(messages) >= model.engine.context:  # each message has at least one token
        raise too_long(len(messages), model.engine.context)
        raise too_long(len(messages), model.engine.context)
    count = sum(model.tokenizer.count(message["content"]) for message in messages)
    count = sum(model.tokenizer.count(message["content"]) for message in messages)
    if count >= model.engine.context:
    if count >= model.engine.context:
        raise too_long(count, model.engine.context)
        raise too_long(count, model.engine.context)
    return model.tokenizer.chat(messages)
    return model.tokenizer.chat(messages)




def sampling_of(request: ReplyRequest, prompt: int, model: Model) -> Sampling:
def sampling_of(request: ReplyRequest, prompt: int, model: Model) -> Sampling:
    """The request's options over the skill's, for a prompt of `prompt` tokens.
    """The request's options over the skill's, for a prompt of `prompt` tokens.


    Raises InvalidRequest for an option above the skill's limit, or if prompt and reply exceed the context.
    Raises InvalidRequest for an option above the skill's limit, or if prompt and reply exceed the context.
    """
    """
    skill, asked, room = request.skill, request.sampling, model.engine.context - prompt
    skill, asked, room = request.skill, request.sampling, model.engine.context - prompt
    if room < 1:
    if room < 1:
        raise too_long(prompt, model.engine.context)
        raise too_long(prompt, model.engine.context)
    check_limits(request)
    check_limits(request)
    longest = min(skill.max_tokens, skill.ceiling, room) if asked.max_tokens is None else asked.max_tokens
    longest = min(skill.max_tokens, skill.ceiling, room) if asked.max_tokens is None else asked.max_tokens
    merged = replace(asked.merged_over(skill), max_tokens=longest)
    merged = replace(asked.merged_over(skill), max_tokens=longest)
    sampling = Sampling.resolve(merged, model.tokenizer.stop_ids)
    sampling = Sampling.resolve(merged, model.tokenizer.stop_ids)
    check(prompt, sampling, model.engine.context)  # before any limit or budget is charged
    check(prompt, sampling, model.engine.context)  # before any limit or budget is charged
    return sampling
    return sampling




def check_limits(request: ReplyRequest) -> None:
def check_limits(request: ReplyRequest) -> None:
    """Raise InvalidRequest for an option that the skill does not allow."""
    """Raise InvalidRequest for an option that the skill does not allow."""
    skill, asked = request.skill, request.sampling
    skill, asked = request.skill, request.sampling
    if asked.max_tokens is not None and asked.max_tokens > skill.ceiling:
    if asked.max_tokens is not None and asked.max_tokens > skill.ceiling:
        raise InvalidRequest(
        raise InvalidRequest(
            f"max_tokens is {asked.max_tokens}; the skill {skill.name!r} allows at most {skill.ceiling}.",
            f"max_tokens is {asked.max_tokens}; the skill {skill.name!r} allows at most {skill.ceiling}.",
            param="max_tokens",
            param="max_tokens",
        )
        )
    if asked.logprobs is not None and not (skill.logprobs and request.key_id):
    if asked.logprobs is not None and not (skill.logprobs and request.key_id):
        raise InvalidRequest(f"The skill {skill.name!r} does not allow logprobs.", param="logprobs")
        raise InvalidRequest(f"The skill {skill.name!r} does not allow logprobs.", param="logprobs")
    if asked.temperature is not None and asked.temperature > skill.max_temperature:
    if asked.temperature is not None and asked.temperature > skill.max_temperature:
        raise InvalidRequest(
        raise InvalidRequest(
            f"temperature is {asked.temperature}; the skill {skill.name!r} allows at most {skill.max_temperature}.",
            f"temperature is {asked.temperature}; the skill {skill.name!r} allows at most {skill.max_temperature}.",
            param="temperature",
            param="temperature",
        )
        )




def too_long(prompt: int, context: int) -> InvalidRequest:
def too_long(prompt: int, context: int) -> InvalidRequest:
    """The error for messages of at least `prompt` tokens, which leave no room for a reply."""
    """The error for messages of at least `prompt` tokens, which leave no room for a reply."""
    return InvalidRequest(
    return InvalidRequest(
        f"The messages have at least {prompt} tokens and the context is {context}; a reply needs at least 1 more.",
        f"The messages have at least {prompt} tokens and the context is {context}; a reply needs at least 1 more.",
        param="messages",
        param="messages",
        code="context_length_exceeded",
        code="context_length_exceeded",
        reason="context",
        reason="context",
    )
    )
