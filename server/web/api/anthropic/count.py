"""POST /v1/messages/count_tokens: the prompt tokens that a message would be billed, the skill's own included."""

from starlette.requests import Request
from starlette.responses import Response

from server.chat.request import LONG_TEXT, prompt_of
from server.chat.worker import Worker
from server.models.rollout import Rollout
from server.skills.catalogue import Skills
from server.web.api.anthropic.errors import ANTHROPIC
from server.web.api.anthropic.schema import parse_count
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
        """The number of prompt tokens; nothing is generated or metered. Raises InvalidRequest beyond the context."""
        problems.write_errors_by(ANTHROPIC.error_body, request)
        caller = self._skills.recognise(ANTHROPIC.credential(request.headers))
        body = await read_body(request, self._max_body)
        wanted = await self._worker.run(parse_count, body) if len(body) > LONG_TEXT else parse_count(body)
        state = RequestState.of(request.scope)
        state.name_skill(self._skills.get(wanted.model))
        grant = self._skills.authorise(wanted.model, caller)
        state.key = grant.key_id
        model = self._rollout.of(grant.skill.model)
        async with self._worker.turn():
            prompt = await prompt_of(wanted.ask(grant.skill), model)
        return json_response({"input_tokens": len(prompt)})
