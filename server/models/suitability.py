"""Checks that a model can answer a skill: its chat template accepts the skill's turns, and they leave room."""

from collections.abc import Iterator

from server.engine.sequence import RequestedSampling, Sampling
from server.errors import ArtifactError, ConfigError, InvalidRequest
from server.models.rollout import Model
from server.skills.skill import Skill
from server.skills.turns import conversation
from server.text.tokenizer import Tokenizer


def suitability_warnings(skill: Skill, model: Model) -> Iterator[str]:
    """Warnings about token limits too small for any reply.

    Raises ConfigError if the model can never answer: its template refuses the skill's turns, they fill the context, or
    its engine does not support the skill's sampling.
    """
    try:
        model.engine.check_options(Sampling.resolve(RequestedSampling().merged_over(skill), frozenset()))
    except InvalidRequest as error:
        raise ConfigError(f"the skill {skill.name!r} does not suit the model {model.name!r}: {error}") from None
    own = own_tokens(skill, model.name, model.tokenizer)
    if own >= model.engine.context:
        raise ConfigError(
            f"the skill {skill.name!r} begins every prompt with {own} tokens and the context is "
            f"{model.engine.context}: no reply has room"
        )
    least = {"minute": own + skill.usual_tokens, "day": own + 1, "month": own + 1}
    for period, tokens in least.items():
        limit = getattr(skill, f"tokens_per_{period}")
        if limit is not None and limit < tokens:
            yield (
                f"the skill {skill.name!r} may use {limit} tokens a {period}, but a reply needs {tokens}, "
                f"{own} of them for its own prompt: it cannot answer"
            )


def own_tokens(skill: Skill, model: str, tokenizer: Tokenizer) -> int:
    """The tokens that every prompt of `skill` has beside the question; `model` is the model's name in messages.

    Raises ConfigError where the model's template refuses the skill's turns.
    """
    try:
        return len(tokenizer.chat(conversation(skill, [{"role": "user", "content": "?"}])))
    except (InvalidRequest, ArtifactError) as error:
        raise ConfigError(f"the skill {skill.name!r} does not suit the model {model!r}: {error}") from None
