"""The body of POST /v1/completions, validated before anything is generated.

Every fault raises InvalidRequest with the field. A prompt is the model's input as it is: without chat template, and
without the skill's prompt.
"""

from typing import Annotated

from msgspec import Meta

from server.chat.kept.idempotent_replies import Origin
from server.chat.request import RawPrompt, ReplyRequest
from server.errors import InvalidRequest
from server.skills.skill import Skill
from server.web.api.openai.chat.schema import StreamOptions, Text
from server.web.api.openai.completions.format import CompletionsFormat, Included
from server.web.api.openai.engine_fields import Alternatives, EngineFields, TokenId, check_biases
from server.web.api.openai.fields import fields_of, sort_fields
from server.web.http.json_body import convert, decode

DEFAULT_MAX_TOKENS = 16  # OpenAI's
MOST_CHOICES = 128
"""Of one request, over all its prompts."""
MOST_STOPS = 16

Prompt = str | list[str | TokenId | list[TokenId]]


class CompletionRequest(EngineFields, frozen=True, kw_only=True):
    """A request for completions of one or more prompts by the model of the skill `model`."""

    model: str
    prompt: Prompt
    """A text, token ids, or a list of either; each prompt gets `n` choices, in this order."""
    max_tokens: Annotated[int, Meta(ge=0)] = DEFAULT_MAX_TOKENS
    """0 needs `echo` or `prompt_logprobs`: only the prompt is computed."""
    best_of: int | None = None
    echo: bool = False
    """Whether each choice begins with its prompt, and its logprobs with the prompt's."""
    logprobs: Alternatives | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    stop: Text | Annotated[list[Text], Meta(max_length=MOST_STOPS)] | None = None
    add_special_tokens: bool = True
    """Whether a prompt that is text gets what the tokenizer puts before and after a text, such as BOS."""

    @property
    def prompts(self) -> tuple[RawPrompt, ...]:
        """Each prompt as text or token ids; raises InvalidRequest for an empty list or a mixture."""
        if isinstance(self.prompt, str):
            return (self.prompt,)
        if self.prompt and all(isinstance(item, int) for item in self.prompt):
            return (tuple(item for item in self.prompt if isinstance(item, int)),)
        texts = [item for item in self.prompt if isinstance(item, str)]
        ids = [tuple(item) for item in self.prompt if isinstance(item, list)]
        if not self.prompt or len(self.prompt) not in (len(texts), len(ids)):
            raise InvalidRequest("`prompt` must be a text, token ids, or a list of texts or of ids.", param="prompt")
        return tuple(texts or ids)

    @property
    def stops(self) -> tuple[str, ...]:
        """The stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def ask(self, skill: Skill) -> ReplyRequest:
        """The request for the choices of `skill`; raises InvalidRequest if it does not take raw prompts."""
        if not skill.completions:
            raise InvalidRequest(
                f"The skill {skill.name!r} takes no raw prompts: use /v1/chat/completions.", param="model"
            )
        echoed = self.logprobs if self.echo else None
        scored = [count for count in (echoed, self.prompt_logprobs) if count is not None]
        sampling = self.requested(
            max_tokens=self.max_tokens, logprobs=self.logprobs, prompt_logprobs=max(scored, default=None)
        )
        return ReplyRequest(
            skill,
            (),
            sampling,
            self.stops,
            cache_labels=self.cache_labels,
            ignored=self.ignored_for(skill),
            prompts=self.prompts,
            add_special_tokens=self.add_special_tokens,
            choices=self.n,
            grammar=self.constraint,
            stop_token=True,
            ids=self.return_token_ids,
            prompt_shown=self.echo or self.prompt_logprobs is not None or self.return_token_ids,
        )

    def format(self, origin: Origin) -> CompletionsFormat:
        """The writer of the response to the request `origin`."""
        options = self.stream_options or StreamOptions()
        included = Included(
            self.logprobs,
            self.prompt_logprobs,
            self.return_token_ids,
            self.echo,
            options.include_usage,
            options.include_usage and options.continuous_usage_stats,
        )
        return CompletionsFormat(origin, self.model, self.prompts, self.n, included)


KNOWN = fields_of(CompletionRequest)


def parse(body: bytes) -> CompletionRequest:
    """The request in `body`; raises InvalidRequest naming the field."""
    fields = decode(body)
    if not isinstance(fields, dict):
        return convert(fields, CompletionRequest)
    sort = sort_fields(fields, KNOWN)
    request = convert({**sort.read, "ignored": sort.ignored, "unknown": sort.unknown}, CompletionRequest)
    check(request)
    return request


def check(request: CompletionRequest) -> None:
    """Raise InvalidRequest for what types cannot express: fields that depend on each other."""
    count = len(request.prompts) * request.n
    if count > MOST_CHOICES:
        raise InvalidRequest(
            f"{len(request.prompts)} prompts with n = {request.n} are {count} choices; at most {MOST_CHOICES} are "
            "allowed: send fewer prompts in a request.",
            param="prompt",
        )
    check_biases(request.logit_bias)
    if request.best_of not in (None, 1, request.n):
        raise InvalidRequest("`best_of` is not supported beyond `n`.", param="best_of", code="unsupported_parameter")
    if request.max_tokens == 0 and not request.echo and request.prompt_logprobs is None:
        raise InvalidRequest(
            "max_tokens is 0; it must be at least 1 without `echo` or `prompt_logprobs`.", param="max_tokens"
        )
    if request.prompt_logprobs is not None and request.stream:
        raise InvalidRequest("`prompt_logprobs` is for whole replies: set `stream` to false.", param="prompt_logprobs")
    if request.stream_options not in (None, StreamOptions()) and not request.stream:
        raise InvalidRequest("`stream_options` is for streams: set `stream` to true.", param="stream_options")
