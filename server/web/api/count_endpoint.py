"""Counts the prompt tokens that a reply would be billed, the skill's own included, without generating or metering."""

from collections.abc import Callable

from starlette.requests import Request
from starlette.responses import Response

from server.chat.request import LONG_TEXT, prompt_of
from server.chat.worker import Worker
from server.models.rollout import Rollout
from server.skills.catalogue import Skills
from server.web.api.reply_endpoint import Dialect, Wanted, check_speaks
from server.web.http import problems
from server.web.http.requests import RequestState, read_body
from server.web.http.responses import json_response


class CountEndpoint:
    """An endpoint whose bodies `parse` reads; `max_body` is in bytes."""

    def __init__(
        self,
        parse: Callable[[bytes], Wanted],
        skills: Skills,
        rollout: Rollout,
        *,
        max_body: int,
        dialect: Dialect,
    ) -> None:
        self._parse = parse
        self._skills = skills
        self._rollout = rollout
        self._max_body = max_body
        self._dialect = dialect
        self._worker = Worker("counting")

    async def count(self, request: Request) -> Response:
        """The number of prompt tokens; raises InvalidRequest for a prompt that exceeds the context."""
        problems.write_errors_by(self._dialect.error_body, request)
        caller = self._skills.recognise(self._dialect.credential(request.headers))
        body = await read_body(request, self._max_body)
        wanted = await self._worker.run(self._parse, body) if len(body) > LONG_TEXT else self._parse(body)
        state = RequestState.of(request.scope)
        state.name_skill(self._skills.get(wanted.model))
        grant = self._skills.authorise(wanted.model, caller)
        state.key = grant.key_id
        check_speaks(grant.skill)
        model = self._rollout.of(grant.skill.model)
        async with self._worker.turn():
            prompt = await prompt_of(wanted.ask(grant.skill), model)
        return json_response({**self._dialect.count_head, "input_tokens": len(prompt)})
