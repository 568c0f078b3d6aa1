"""Requests to models whose backends take messages and send text: what they are sent, and what is refused."""

from server.chat.request import ReplyRequest
from server.errors import InvalidRequest
from server.models.rollout import Model
from server.skills.turns import conversation
from server.text.chat_template import Message, TemplateOptions


def messages_for(request: ReplyRequest, model: Model) -> tuple[Message, ...]:
    """The conversation as a chat backend takes it; nothing for engines that take ids.

    Raises InvalidRequest for what needs token ids or the prompt's own rendering.
    """
    if not model.engine.text:
        return ()
    refused = {
        "prompt": bool(request.prompts),
        "tools": bool(request.tools.tools) or any("tool_calls" in message for message in request.messages),
        "response_format": request.grammar is not None,
        "n": request.choices > 1,
        "return_token_ids": request.ids or request.prompt_shown,
        "chat_template_kwargs": request.template != TemplateOptions(),
    }
    for option, used in refused.items():
        if used:
            raise InvalidRequest(
                f"This skill's model runs on a chat backend, which does not support {option}: leave it out.",
                param=option,
                code="unsupported_by_engine",
            )
    turns = conversation(request.skill, request.messages, request.person)
    return tuple({"role": turn["role"], "content": turn["content"]} for turn in turns)
