"""A request for one reply, whatever its wire format: its prompt, and its sampling within the skill's limits."""

import json
import re
import secrets
from collections.abc import Collection, Sequence

from anyio import to_thread
from msgspec import Struct
from msgspec.structs import replace

from server.chat.tools.offer import Offer
from server.chat.tools.use import ToolUse, tool_use
from server.engine.sequence import RequestedSampling, Sampling, check
from server.engine.sequence import Sequence as EngineSequence
from server.errors import InvalidRequest
from server.models.rollout import Model
from server.skills.key_limits import NO_LIMITS, KeyLimits
from server.skills.skill import Skill
from server.skills.turns import conversation
from server.text.chat_template import Message, TemplateOptions, strings
from server.text.grammar.grammar import Grammar as Grammar
from server.text.grammar.grammar import Kind as Kind

LONG_TEXT = 4096  # characters; longer prompts are tokenised in a thread, so that other streams go on
CLAMPED = "X-Secateur-Max-Tokens"
MOST_NAMES = 32
MOST_LOGPROBS = 500_000  # of one request: about 100 MB
TURN = 64  # characters added per message for what the chat template writes around it


RawPrompt = str | tuple[int, ...]
"""The model's input as text or token ids."""


class ReplyRequest(Struct, frozen=True):
    """One reply of `skill`, to messages or to raw prompts; options left None are the skill's."""

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
    groups: frozenset[str] = frozenset()
    """The groups of the caller's key or verified identity: what it may see of a knowledge beside what everyone may."""
    questions: tuple[str, ...] = ()
    """The user's own words, to search a knowledge for, where `messages` hold more; empty: the user's turns."""
    idempotency: str | None = None
    """Digest of the Idempotency-Key."""
    template: TemplateOptions = TemplateOptions()
    """Tools and variables for the chat template, and whether the reply continues the last message."""
    ignored: tuple[str, ...] = ()
    """Names of fields that were not honoured."""
    tools: Offer = Offer()
    """Functions that the model may call."""
    prompts: tuple[RawPrompt, ...] = ()
    """Instead of messages: the model's input as it is, without the skill's turns."""
    add_special_tokens: bool = True
    """Whether text among `prompts` gets what the tokenizer puts around every text, such as BOS."""
    choices: int = 1
    """Choices of each prompt."""
    stop_token: bool = False
    """Whether the token that ends a choice has logprobs too."""
    ids: bool = False
    """Whether pieces have the sampled ids."""
    prompt_shown: bool = False
    """Whether the first piece of each choice has its prompt."""
    grammar: Grammar | None = None
    """What each choice must match."""


def cache_salt(request: ReplyRequest) -> str:
    """The salt of a request's own prefix cache blocks: one for each API key, groups and labels, or conversation.

    A request with neither gets a random salt, so it shares only the skill's prefix.
    """
    if not request.key_id and not request.conversation:
        return secrets.token_hex()
    return json.dumps([request.key_id, request.conversation, sorted(request.groups), *request.cache_labels])


async def prompts_of(request: ReplyRequest, model: Model) -> list[list[int]]:
    """The token ids of each prompt; raises InvalidRequest if one is too long, empty, or not the model's."""
    if not request.prompts:
        found = [await prompt_of(request, model)]
    elif sum(map(len, request.prompts)) <= LONG_TEXT:
        found = raw_prompts(request, model)
    else:
        found = await to_thread.run_sync(raw_prompts, request, model)
    check_logprobs(request, sum(map(len, found)))
    return found


def raw_prompts(request: ReplyRequest, model: Model) -> list[list[int]]:
    """The token ids of each raw prompt; what a text spells never becomes a special token."""
    found = []
    for prompt in request.prompts:
        if isinstance(prompt, tuple):
            ids = list(prompt)
        else:
            if len(prompt) > LONG_TEXT and (count := model.tokenizer.count(prompt)) >= model.engine.context:
                raise too_long(count, model.engine.context, "prompt")
            ids = model.tokenizer.tokenise(prompt, add_special=request.add_special_tokens, recognise=False)
        if not ids:
            raise InvalidRequest("The prompt is empty; it needs at least one token.", param="prompt")
        if max(ids) >= model.engine.vocabulary:
            raise InvalidRequest(
                f"The prompt contains token {max(ids)}; the model's vocabulary has {model.engine.vocabulary} tokens.",
                param="prompt",
            )
        found.append(ids)
    return found


def sequences_of(
    request: ReplyRequest,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    shared_prefix: int,
    messages: tuple[Message, ...] = (),
) -> list[EngineSequence]:
    """A sequence for each choice; the first of a prompt computes it for the others, which have the next seeds.

    `messages` are those of `messages_for`.
    """
    salt, made = cache_salt(request), []
    for prompt in prompts:
        leader: EngineSequence | None = None
        for number in range(request.choices):
            own = sampling if leader is None else replace(sampling, prompt_logprobs=None)
            if own.seed is not None:
                own = replace(own, seed=own.seed + number)
            sequence = EngineSequence(
                request.skill.name,
                tuple(prompt),
                own,
                shared_prefix=shared_prefix,
                cache_salt=salt,
                leader=leader,
            )
            sequence.messages = messages
            leader = leader or sequence
            made.append(sequence)
    return made


async def prompt_of(request: ReplyRequest, model: Model) -> list[int]:
    """The token ids of the conversation in `model`'s chat template; raises InvalidRequest if it is too long."""
    asked, options = list(request.messages), request.template
    if request.tools.tools or any(message["role"] == "tool" or "tool_calls" in message for message in asked):
        asked, options = tools_of(request, model).shown(asked, options)
    messages = conversation(request.skill, asked, request.person)
    size = TURN * len(messages) + sum(map(len, strings([*messages, *options.tools])))
    if size <= LONG_TEXT:
        return model.tokenizer.chat(messages, options=options)
    return await to_thread.run_sync(long_prompt, messages, options, model)


def tools_of(request: ReplyRequest, model: Model) -> ToolUse:
    """How the request's tools are shown to `model`, constrained and read."""
    return tool_use(request.tools, model.tokenizer, request.grammar)


def long_prompt(messages: Sequence[Message], options: TemplateOptions, model: Model) -> list[int]:
    """Token ids of `messages`, counted first: counting is fast, exact tokenising takes a second per megabyte."""
    if len(messages) >= model.engine.context:  # each message has at least one token
        raise too_long(len(messages), model.engine.context)
    count = sum(model.tokenizer.count(message["content"]) for message in messages)
    if count >= model.engine.context:
        raise too_long(count, model.engine.context)
    return model.tokenizer.chat(messages, options=options)


def sampling_of(request: ReplyRequest, prompt: int, model: Model, own: KeyLimits = NO_LIMITS) -> Sampling:
    """The request's options over the skill's, for a prompt of `prompt` tokens; `max_tokens` is what there is room for.

    `own` are the limits of the caller's key.

    Raises InvalidRequest for an option above the skill's limit, or if the prompt leaves no room in the context.
    """
    skill, asked = request.skill, request.sampling
    if prompt >= model.engine.context:
        raise too_long(prompt, model.engine.context, "prompt" if request.prompts else "messages")
    check_limits(request)
    wanted = skill.usual_tokens if asked.max_tokens is None else asked.max_tokens
    most = most_tokens(skill, own, prompt, model.engine.context)
    merged = replace(asked.merged_over(skill), max_tokens=min(wanted, most))
    sampling = Sampling.resolve(merged, model.tokenizer.stop_ids)
    check(prompt, sampling, model.engine.context)  # before any limit or budget is charged
    return sampling


async def constrained(request: ReplyRequest, sampling: Sampling, model: Model) -> Sampling:
    """`sampling` with the grammar of the request or of its tools; raises InvalidRequest if that is not supported."""
    grammar = tools_of(request, model).grammar if request.tools.callable else request.grammar
    if grammar is None:
        return sampling
    return replace(sampling, constraint=await model.tokenizer.grammars.compile(grammar))


def most_tokens(skill: Skill, own: KeyLimits, prompt: int, context: int) -> int:
    """The most tokens of a reply of `skill`, to a key with limits of its `own`, after `prompt` tokens: at least 1."""
    a_minute = [limit - prompt for limit in (skill.tokens_per_minute, own.tokens_per_minute) if limit is not None]
    return max(1, min(context - prompt, skill.tokens_per_reply or context, *a_minute))


def notes_of(request: ReplyRequest, sampling: Sampling) -> dict[str, str]:
    """Response headers that name what was asked for and not granted."""
    asked, notes = request.sampling.max_tokens, {}
    if request.ignored:
        notes["X-Secateur-Ignored"] = header_value(request.ignored)
    if asked is not None and sampling.max_tokens < asked:
        notes[CLAMPED] = str(sampling.max_tokens)
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
    check_choices(request)
    if asked.temperature is not None and asked.temperature > skill.max_temperature:
        raise InvalidRequest(
            f"temperature is {asked.temperature}; the skill {skill.name!r} allows at most {skill.max_temperature}.",
            param="temperature",
        )


def check_logprobs(request: ReplyRequest, prompt: int) -> None:
    """Raise InvalidRequest for more logprobs than a reply may hold in memory; the prompts have `prompt` tokens."""
    asked, entries = request.sampling, 0
    if asked.prompt_logprobs is not None:
        entries += prompt * request.choices * (1 + asked.prompt_logprobs)
    if asked.logprobs is not None:
        choices = request.choices * max(1, len(request.prompts))
        entries += choices * (asked.max_tokens or request.skill.usual_tokens) * (1 + asked.logprobs)
    if entries > MOST_LOGPROBS:
        raise InvalidRequest(
            f"The request asks for up to {entries} log probabilities with alternatives; at most {MOST_LOGPROBS} are "
            "allowed: send fewer prompts, or ask for fewer choices, alternatives or tokens.",
            param="logprobs" if asked.logprobs is not None else "prompt_logprobs",
        )


def check_choices(request: ReplyRequest) -> None:
    """Raise InvalidRequest for more choices than the skill allows, or for a prompt that it does not show."""
    skill, asked = request.skill, request.sampling
    if request.choices > skill.choices:
        raise InvalidRequest(
            f"n is {request.choices}; the skill {skill.name!r} allows at most {skill.choices}.", param="n"
        )
    if asked.prompt_logprobs is not None and not (skill.logprobs and request.key_id):
        raise InvalidRequest(f"The skill {skill.name!r} does not allow logprobs.", param="prompt_logprobs")
    if request.prompt_shown and not request.prompts and skill.hides_prompt:
        raise InvalidRequest(
            f"The skill {skill.name!r} does not show its prompt, which `prompt_logprobs` and `return_token_ids` would.",
            param="prompt_logprobs" if asked.prompt_logprobs is not None else "return_token_ids",
        )
    if None not in (asked.min_tokens, asked.max_tokens) and (asked.min_tokens or 0) > (asked.max_tokens or 0):
        raise InvalidRequest(
            f"min_tokens is {asked.min_tokens} and max_tokens is {asked.max_tokens}; it may not be more.",
            param="min_tokens",
        )


def too_long(prompt: int, context: int, param: str = "messages") -> InvalidRequest:
    """The error for a prompt of at least `prompt` tokens, sent as `param`, which leaves no room for a reply."""
    what, have = ("prompt", "has") if param == "prompt" else ("messages", "have")
    return InvalidRequest(
        f"This model's maximum context length is {context} tokens. However, your {what} {have} at least {prompt} "
        f"tokens, and a reply needs at least 1 more: the prompt is too long. Please shorten the {what}.",
        param=param,
        code="context_length_exceeded",
        reason="context",
    )
