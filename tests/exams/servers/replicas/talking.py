"""Visitors who keep asking, follow what breaks off, and ask interrupted questions again."""

import http.client
import json
import threading
import time
from contextlib import closing
from typing import Any

from msgspec import Struct

from tests.support.visitor import Visitor, events

PAUSE = 0.3


class Reply(Struct):
    """What a visitor knows of one reply."""

    id: str
    request_id: str = ""
    pieces: int = 0
    """Pieces of text that were delivered."""
    finish: str | None = None
    tokens: int | None = None
    """Output tokens of its usage."""
    first: float | None = None
    """Seconds to the first piece."""


class Talker(threading.Thread):
    """One conversation: questions one after another until `stop` is set."""

    def __init__(self, url: str, number: int, stop: threading.Event) -> None:
        super().__init__(name=f"talker-{number}", daemon=True)
        self.replies: dict[str, Reply] = {}
        self.answered: list[float] = []
        """When each question was answered to its end, on the monotonic clock."""
        self.problem = ""
        self._url = url
        self._number = number
        self._over = stop
        self._visitor: Visitor | None = None
        self._resume = ""
        self.renewed = 0

    def run(self) -> None:
        """Ask and have each question answered; `problem` says what nobody should see."""
        asked = 0
        try:
            while not self._over.is_set():
                asked += 1
                self._answer(f"Question {asked} of {self._number}?", f"m{asked}")
        except Exception as error:  # reported by the exam
            self.problem = f"{type(error).__name__}: {error}"

    def _answer(self, text: str, message: str) -> None:
        """Ask until one reply to the question has ended; gives up when the exam ends."""
        replace, attempt = None, 0
        while not self._over.is_set():
            attempt += 1
            try:
                self._ask(text, f"{message}-{attempt}" if replace else message, replace)
            except (OSError, http.client.HTTPException):
                time.sleep(PAUSE)
            ended = self._look()
            if ended is None or ended["question"] != text:
                continue
            if ended["reply"]["finish"] != "interrupted":
                self.answered.append(time.monotonic())
                return
            replace = ended["reply"]["id"]

    def _ask(self, text: str, message: str, replace: str | None) -> None:
        visitor = self._open()
        more = {"replace": replace} if replace else {}
        begun, session = time.monotonic(), f"conversation-{self._number}"
        body = {"text": text, "message": message, **more}
        with closing(visitor.request("POST", "messages", body, x_session_id=session)) as response:
            if response.status != 200:
                self._renew(response.status, response.read())
                time.sleep(PAUSE)
                return
            found: Reply | None = None
            for event in events(response):
                if event.name == "start":
                    found = self.replies.setdefault(event.data["reply"], Reply(event.data["reply"]))
                    found.request_id = response.getheader("X-Request-Id") or ""
                if found is not None:
                    note(found, event.name, event.data, begun)

    def _look(self) -> dict[str, Any] | None:
        """The latest turn, once no reply is under way; None while nobody answers or there is none."""
        while not self._over.is_set():
            try:
                shown = self._open().get("conversation", x_session_id=f"conversation-{self._number}")
            except (OSError, http.client.HTTPException, ValueError):
                time.sleep(PAUSE)
                continue
            if shown.status == 200 and shown.json["running"] is None:
                turns = shown.json["turns"]
                if turns:
                    last = turns[-1]["reply"]
                    self.replies.setdefault(last["id"], Reply(last["id"])).finish = last["finish"]
                    return dict(turns[-1])
                return None
            self._renew(shown.status, json.dumps(shown.json).encode())
            time.sleep(PAUSE)
        return None

    def _open(self) -> Visitor:
        """The visitor, with the session of the first time."""
        if self._visitor is None:
            made = Visitor.at(self._url)
            if not made.token:
                raise ConnectionError("no session yet")
            self._visitor, self._resume = made, made.opened.json["resume"]
        return self._visitor

    def _renew(self, status: int, answer: bytes) -> None:
        """Refresh an expired session, as the widget does; raises AssertionError for any other refusal."""
        if status not in (401, 403):
            return
        if json.loads(answer)["error"]["code"] != "session_expired":
            raise AssertionError(f"the conversation is refused with {status}: {answer.decode()}")
        visitor = self._open()
        body, session = {"skill": "help", "resume": self._resume}, f"conversation-{self._number}"
        try:
            fresh = visitor.post("session", body, x_session_id=session)
        except (OSError, http.client.HTTPException, ValueError):
            return  # nobody answers now: the next request finds it expired again
        if fresh.status != 200:
            return
        if not fresh.json["resumed"]:
            raise AssertionError("a refreshed session has lost its conversation")
        visitor.token, self._resume = fresh.json["token"], fresh.json["resume"]
        self.renewed += 1


def note(reply: Reply, name: str, data: Any, begun: float) -> None:
    """Note an event of a reply."""
    if name == "text":
        reply.pieces += 1
        reply.first = reply.first or time.monotonic() - begun
    if name == "end":
        reply.finish = data["finish"]
        reply.tokens = data["usage"]["completion_tokens"] if data.get("usage") else None
