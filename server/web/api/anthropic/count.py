"""POST /v1/messages/count_tokens: the prompt tokens that a message would be billed, the skill's own included."""

from starlette.requests import Request
from starlette.responses import Response

from server.chat.request import LONG_TEXT
from server.chat.worker import Worker
from server.models.rollout import Model, Rollout
from server.skills.catalogue import Skills
from server.skills.skill import Skill
from server.skills.turns import conversation
from server.web.api.anthropic.errors import ANTHROPIC
from server.web.api.anthropic.schema import WantedMessage, parse_count
from server.web.http import problems
from server.web.http.requests import RequestState, read_body
from server.web.http.responses import json_response


class CountEndpoint:
    """The endpoint for these skills' models; `max_body` is in bytes."""

    def __init__(self, skills: Skills, rollout: Rollout, *, max_body: int) -> None:
        self._skills = skills
        self._rollout = rollout
        self._max_body = max_body
        self._worker = Worker("counting")

    async def count(self, request: Request) -> Response:
        """The number of prompt tokens; nothing is generated or metered."""
        problems.write_errors_by(ANTHROPIC.error_body, request)
        caller = self._skills.recognise(ANTHROPIC.credential(request.headers))
        body = await read_body(request, self._max_body)
        long = len(body) > LONG_TEXT
        wanted = await self._worker.run(parse_count, body) if long else parse_count(body)
        state = RequestState.of(request.scope)
        state.name_skill(self._skills.get(wanted.model))
        grant = self._skills.authorise(wanted.model, caller)
        state.key = grant.key_id
        model = self._rollout.of(grant.skill.model)
        given = wanted, grant.skill, model
        tokens = await self._worker.run(prompt_tokens, *given) if long else prompt_tokens(*given)
        return json_response({"input_tokens": tokens})


def prompt_tokens(wanted: WantedMessage, skill: Skill, model: Model) -> int:
    """The tokens of the prompt that the request would have."""
    asked = wanted.ask(skill)
    return len(model.tokenizer.chat(conversation(skill, asked.messages), options=asked.template))
