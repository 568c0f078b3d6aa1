"""Checks that a proxy passes server-sent events on as they come, by a short reply through it."""

from collections.abc import Iterator

from server.commands.start.doctor.finding import Finding
from server.commands.start.talk import Reply, Service

QUESTION = "Count from one to twenty in words."
TOKENS = 32


def stream(service: Service, skill: str) -> Iterator[Finding]:
    """A reply of the skill through the address of `service`; raises SecateurError if it is refused."""
    reply = Reply()
    for _ in service.reply(skill, [{"role": "user", "content": QUESTION}], reply, max_tokens=TOKENS):
        pass
    spread = reply.last - reply.first
    found = f"{service.url}: first text after {reply.first:.2f} s, the last {spread:.2f} s later"
    # Even the fastest model needs some milliseconds between tokens; what is buffered arrives in one piece.
    if reply.pieces > 2 and spread < 0.1 * reply.last and spread < 0.02:
        remedy = "Turn its buffering and compression off for text/event-stream: the docs' page `Proxies`"
        yield Finding("stream", "failed", f"{found}: a proxy holds replies back until they end", remedy)
    else:
        yield Finding("stream", "ok", found)
